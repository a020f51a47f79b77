//! Traces made by hand: the comparison must say no to each way of being different, and a file must give
//! back what was written to it.

use super::statistics::Growing;
use super::{DiffOptions, Trace, TraceDiff, TraceEntry, TraceFinding, TraceOptions};
use crate::tiny::Random;

const WIDTH: usize = 16;

/// A row of a tensor with its position.
type Row = (usize, Vec<f32>);

fn entry(name: &str, rows: &[Row], whole: bool) -> TraceEntry {
    let mut growing = Growing::new(name.to_owned(), &[rows[0].1.len()], 8, whole);
    for (position, row) in rows {
        growing.push(*position, row).unwrap();
    }
    growing.finish().unwrap()
}

/// Tensors `a`, `b` and `c` of four rows; `alter` may change the rows of one, given its name.
fn trace(whole: bool, alter: &dyn Fn(&str, &mut Vec<Row>)) -> Trace {
    let mut random = Random(11);
    let entries = ["a", "b", "c"].map(|name| {
        let mut rows: Vec<Row> = (0..4)
            .map(|row| (row, (0..WIDTH).map(|_| random.next_f32()).collect()))
            .collect();
        alter(name, &mut rows);
        entry(name, &rows, whole)
    });
    Trace {
        source: "by hand".to_owned(),
        tokens: vec![5, 6, 7, 8],
        position: 0,
        options: Some(TraceOptions {
            whole,
            ..TraceOptions::default()
        }),
        entries: entries.into(),
    }
}

fn plain(whole: bool) -> Trace {
    trace(whole, &|_, _| ())
}

/// With the value at a row and column of tensor `b` replaced.
fn with_value(whole: bool, row: usize, column: usize, value: f32) -> Trace {
    trace(whole, &|name, rows| {
        if name == "b" {
            rows[row].1[column] = value;
        }
    })
}

fn diff(found: &Trace, expected: &Trace) -> TraceDiff {
    found.diff(expected, &DiffOptions::default())
}

#[track_caller]
fn assert_first(diff: &TraceDiff, name: &str, is_it: impl Fn(&TraceFinding) -> bool) {
    assert!(!diff.agrees(), "{diff}");
    let first = diff.first().unwrap_or_else(|| panic!("{diff}"));
    assert_eq!(first.name, name, "{diff}");
    assert!(first.finding.as_ref().is_some_and(is_it), "{diff}");
    assert!(diff.to_string().contains(&format!("`{name}`")), "{diff}");
}

#[test]
fn diff_says_yes_to_equal_traces() {
    for whole in [false, true] {
        let exact = DiffOptions { tolerance: 0.0 };
        let diff = plain(whole).diff(&plain(whole), &exact);
        assert!(diff.agrees(), "{diff}");
        assert_eq!(diff.largest().unwrap().error, 0.0);
        assert_eq!(diff.tensors.len(), 3);
    }
    assert!(diff(&plain(true), &plain(false)).agrees());
}

#[test]
fn diff_allows_what_the_tolerance_allows() {
    let value = plain(true).entries[1].row(2).unwrap()[3];
    let changed = with_value(true, 2, 3, value + 1e-4);
    let allowing = |tolerance| plain(true).diff(&changed, &DiffOptions { tolerance });
    assert!(allowing(1e-3).agrees());
    for tolerance in [1e-5, 0.0, f64::NAN] {
        assert!(!allowing(tolerance).agrees(), "{tolerance}");
    }
}

#[test]
fn diff_names_the_place_of_one_changed_value() {
    for row in 0..4 {
        let diff = diff(&with_value(true, row, 13, 1.5), &plain(true));
        assert_first(&diff, "b", |finding| {
            matches!(finding, TraceFinding::Value { position, column: 13, found: 1.5, .. }
                if *position == row)
        });
        assert_eq!(
            diff.tensors.iter().filter(|t| t.finding.is_some()).count(),
            1
        );
    }
}

#[test]
fn diff_without_all_values_names_the_row() {
    let first_values = diff(&with_value(false, 3, 2, 1.5), &plain(false));
    assert_first(&first_values, "b", |finding| {
        matches!(
            finding,
            TraceFinding::Value {
                position: 3,
                column: 2,
                ..
            }
        )
    });
    let row_alone = diff(&with_value(false, 1, 2, 1.5), &plain(false));
    assert_first(&row_alone, "b", |finding| {
        matches!(
            finding,
            TraceFinding::Statistic {
                what: "rms",
                position: Some(1),
                ..
            }
        )
    });
    // The sign changes no root mean square, and is behind the first values.
    let value = plain(true).entries[1].row(1).unwrap()[12];
    let sign = diff(&with_value(false, 1, 12, -value), &plain(false));
    assert_first(&sign, "b", |finding| {
        matches!(finding, TraceFinding::Statistic { position: None, .. })
    });
}

#[test]
fn diff_never_takes_what_is_no_number_for_equal() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for whole in [false, true] {
            // The place is seen where values are kept, the count everywhere.
            for (row, at) in [(3, 2), (1, 12)] {
                let wrong = with_value(whole, row, at, value);
                for (found, expected) in [
                    (&wrong, &wrong),
                    (&wrong, &plain(whole)),
                    (&plain(whole), &wrong),
                ] {
                    let tolerance = if row == 3 { 1e30 } else { 1e-3 };
                    let diff = found.diff(expected, &DiffOptions { tolerance });
                    let has_place = whole || row == 3;
                    assert_first(&diff, "b", |finding| match finding {
                        TraceFinding::Value {
                            position, column, ..
                        } => has_place && (*position, *column) == (row, at),
                        TraceFinding::NotFinite { .. } => !has_place,
                        _ => false,
                    });
                }
            }
        }
    }
    let nothing = |_: &str, rows: &mut Vec<Row>| {
        rows.iter_mut().for_each(|(_, row)| row.fill(f32::NAN));
    };
    assert!(!diff(&trace(false, &nothing), &trace(false, &nothing)).agrees());
}

#[test]
fn diff_says_what_is_in_one_trace_alone() {
    let mut shorter = plain(false);
    shorter.entries.remove(1);
    let missing = diff(&shorter, &plain(false));
    assert!(
        !missing.agrees() && missing.only_in_second == ["b"],
        "{missing}"
    );
    assert!(
        missing.to_string().contains("ONLY IN THE SECOND: `b`"),
        "{missing}"
    );
    let missing = diff(&plain(false), &shorter);
    assert!(
        !missing.agrees() && missing.only_in_first == ["b"],
        "{missing}"
    );

    shorter.options.as_mut().unwrap().names = vec!["a".into(), "c".into()];
    let selected = diff(&shorter, &plain(false));
    assert!(
        selected.agrees() && selected.n_not_asked_for == 1,
        "{selected}"
    );
    shorter.options = None;
    assert!(diff(&plain(false), &shorter).agrees());
    shorter.entries.clear();
    let nothing = diff(&plain(false), &shorter);
    assert!(
        !nothing.agrees() && nothing.to_string().contains("NOTHING"),
        "{nothing}"
    );
}

#[test]
fn diff_says_no_to_another_shape() {
    let wider = trace(true, &|name, rows| {
        if name == "c" {
            rows.iter_mut().for_each(|(_, row)| row.push(0.0));
        }
    });
    assert_first(&diff(&wider, &plain(true)), "c", |finding| {
        *finding
            == TraceFinding::Shape {
                found: vec![4, WIDTH + 1],
                expected: vec![4, WIDTH],
            }
    });
}

#[test]
fn diff_compares_the_rows_that_both_were_asked_for() {
    let last = trace(true, &|_, rows| {
        rows.drain(..3);
    });
    assert_first(&diff(&last, &plain(true)), "a", |finding| {
        matches!(finding, TraceFinding::Positions { .. })
    });
    let mut asked = last.clone();
    asked.options.as_mut().unwrap().positions = vec![3];
    assert!(diff(&asked, &plain(true)).agrees());
    assert!(diff(&plain(true), &asked).agrees());
    assert_first(
        &diff(&asked, &with_value(true, 3, 15, 2.0)),
        "b",
        |finding| {
            matches!(
                finding,
                TraceFinding::Value {
                    position: 3,
                    column: 15,
                    ..
                }
            )
        },
    );
    assert!(diff(&asked, &with_value(true, 2, 15, 2.0)).agrees());

    let mut first = trace(true, &|_, rows| rows.truncate(1));
    first.options.as_mut().unwrap().positions = vec![0];
    assert_first(&diff(&first, &asked), "a", |finding| {
        matches!(finding, TraceFinding::Positions { .. })
    });
}

#[test]
fn diff_misses_no_rows_at_positions_that_were_not_asked_for() {
    let last_alone = trace(true, &|name, rows| {
        if name == "c" {
            rows.drain(..3);
        }
    });
    let mut first = trace(true, &|_, rows| rows.truncate(1));
    first.entries.pop();
    let mut asked = |positions: &[usize]| {
        first.options.as_mut().unwrap().positions = positions.to_vec();
        first.clone()
    };
    for diff in [
        diff(&asked(&[0]), &last_alone),
        diff(&last_alone, &asked(&[0])),
    ] {
        assert!(diff.agrees() && diff.n_not_asked_for == 1, "{diff}");
    }
    let missing = diff(&asked(&[0, 3]), &last_alone);
    assert!(
        !missing.agrees() && missing.only_in_second == ["c"],
        "{missing}"
    );
    let mut shorter = asked(&[]);
    shorter.tokens.truncate(3);
    let not_run = diff(&last_alone, &shorter);
    assert_eq!(not_run.only_in_first, [""; 0]);
    assert_eq!(not_run.n_not_asked_for, 1);
}

#[test]
fn diff_says_no_to_other_tokens() {
    let mut other = plain(false);
    other.tokens[2] = 9;
    let diff = diff(&other, &plain(false));
    assert_eq!(diff.tokens_differ, Some((2, 9, 7)));
    assert!(!diff.agrees() && diff.first().is_none(), "{diff}");
}

fn written(trace: &Trace) -> String {
    let mut bytes = Vec::new();
    trace.write_jsonl(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn file_gives_back_what_was_written() {
    let trace = trace(true, &|name, rows| {
        if name == "b" {
            let special = [-0.0, f32::MAX, f32::MIN_POSITIVE, 1e-45, 0.1, 16777217.0];
            rows[2].1[..6].copy_from_slice(&special);
        }
    });
    let text = written(&trace);
    assert_eq!(text.lines().count(), 4);
    let back = Trace::from_json(&text).unwrap();
    let bits = |trace: &Trace| -> Vec<u32> {
        let values = trace
            .entries
            .iter()
            .flat_map(|entry| entry.values.iter().flatten());
        values.map(|value| value.to_bits()).collect()
    };
    assert_eq!(bits(&back), bits(&trace));
    assert_eq!(
        (back.options, back.tokens),
        (trace.options.clone(), trace.tokens.clone())
    );
    let again = Trace::from_json(&text).unwrap();
    assert!(
        again
            .diff(&trace, &DiffOptions { tolerance: 1e-14 })
            .agrees()
    );
}

#[test]
fn file_keeps_what_is_no_number() {
    let trace = trace(true, &|_, rows| {
        let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        rows[3].1[..3].copy_from_slice(&special);
        rows[0].1.fill(f32::NAN);
    });
    let text = written(&trace);
    let back = Trace::from_json(&text).unwrap();
    for entry in &back.entries {
        assert!(entry.first_values[0].is_nan());
        assert_eq!(entry.first_values[1..3], [f32::INFINITY, f32::NEG_INFINITY]);
        assert_eq!(
            (entry.n_nan, entry.n_infinite),
            (Some(WIDTH as u64 + 1), Some(2))
        );
        assert!(entry.row_rms[0].is_nan() && entry.row(0).unwrap()[7].is_nan());
    }
}

#[test]
fn damaged_files_are_refused_with_the_place() {
    let text = written(&plain(true));
    let lines: Vec<&str> = text.lines().collect();
    let without = |line: usize| {
        let mut lines = lines.clone();
        lines.remove(line);
        lines.join("\n")
    };
    let twice = [lines[0], lines[1], lines[1], lines[3]].join("\n");
    for (text, expected) in [
        (String::new(), "neither a trace"),
        ("{}".to_owned(), "neither a trace"),
        (without(0), "neither a trace"),
        (without(2), "2 tensors, expected 3"),
        (twice, "`a` is there twice"),
        (text[..text.len() - 20].to_owned(), "line 4"),
        (
            text.replace("\"trueshot_trace\":1", "\"trueshot_trace\":2"),
            "version 2",
        ),
        (
            text.replace("\"shape\":[4,16]", "\"shape\":[4,17]"),
            "64 values, expected 68",
        ),
        (
            text.replace("\"shape\":[4,16]", "\"shape\":[3,16]"),
            "shape [3, 16] of 4 rows",
        ),
        (
            text.replace("\"shape\":[4,16]", "\"shape\":[4,4611686018427387904]"),
            "shape [4, 4611686018427387904] of 4 rows",
        ),
        (
            text.replace("\"positions\":[0,1,", "\"positions\":[1,1,"),
            "do not rise",
        ),
        (
            text.replace(
                "\"positions\":[0,1,2,3],\"shape\":[4,",
                "\"positions\":[],\"shape\":[0,",
            ),
            "shape [0, 16] of 0 rows",
        ),
        (
            text.replace(
                "\"position\":0",
                &format!("\"position\":{}", usize::MAX - 3),
            ),
            "leaves no room for 4 tokens",
        ),
        (
            text.replace("\"row_rms\":[", "\"row_rms\":[0.5,"),
            "5 rows, expected 4",
        ),
        (
            text.replace("\"rms\":0", "\"rms\":\"many\",\"x\":0"),
            "line 2: invalid value",
        ),
    ] {
        let error = Trace::from_json(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "`{expected}` is not in: {error}");
    }
}

/// Three tokens, a tensor with heads, and one of the last row alone.
const REFERENCE: &str = r#"{"model": "m", "prompts": [{"tokens": [9]}, {"tokens": [5, 6, 7], "x": 1}],
    "trace": {"prompt": 1, "tensors": [
        {"name": "Qcur-1", "ne": [2, 2, 3], "rms": 2.0, "min": -2, "max": 2,
         "last_token_first8": [2, -2, 2, -2]},
        {"name": "l_out-1", "ne": [4, 1, 1], "rms": 3.0, "min": 3, "max": 3,
         "last_token_first8": [3, 3, 3, 3]}]}}"#;

fn beside_the_reference(q: f32, out: [f32; 3]) -> Trace {
    let row = |value: f32| vec![value, -value, value, -value];
    let q = [(0, row(2.0)), (1, row(q)), (2, row(2.0))];
    let out = [(0, out[0]), (1, out[1]), (2, out[2])].map(|(row, value)| (row, vec![value; 4]));
    Trace {
        tokens: vec![5, 6, 7],
        entries: vec![
            entry("blk.1.attn_norm", &q, false),
            entry("blk.1.Qcur", &q, false),
            entry("blk.1.l_out", &out, false),
        ],
        ..plain(false)
    }
}

#[test]
fn reference_is_read_with_the_names_of_steps() {
    let reference = Trace::from_json(REFERENCE).unwrap();
    assert_eq!(reference.tokens, [5, 6, 7]);
    assert_eq!(reference.entry("blk.1.Qcur").unwrap().shape, [3, 4]);
    assert_eq!(reference.entry("blk.1.l_out").unwrap().positions, [2]);
    let same = diff(&beside_the_reference(2.0, [7.0, 8.0, 3.0]), &reference);
    assert!(same.agrees(), "{same}");
    assert_eq!((same.tensors.len(), same.n_not_asked_for), (2, 1));

    let wrong = diff(&beside_the_reference(2.1, [7.0, 8.0, 3.0]), &reference);
    assert_first(&wrong, "blk.1.Qcur", |finding| {
        matches!(
            finding,
            TraceFinding::Statistic {
                what: "rms",
                position: None,
                ..
            }
        )
    });
    let wrong = diff(&beside_the_reference(2.0, [7.0, 8.0, 3.1]), &reference);
    assert_first(&wrong, "blk.1.l_out", |finding| {
        matches!(
            finding,
            TraceFinding::Value {
                position: 2,
                column: 0,
                ..
            }
        )
    });
    let mut missing = beside_the_reference(2.0, [7.0, 8.0, 3.0]);
    missing.entries.pop();
    assert_eq!(diff(&missing, &reference).only_in_second, ["blk.1.l_out"]);
}

#[test]
fn reference_that_contradicts_itself_is_refused() {
    for (from, to, expected) in [
        ("\"prompt\": 1", "\"prompt\": 2", "prompt 2"),
        (
            "[2, 2, 3]",
            "[2, 2, 2]",
            "`Qcur-1`: shape [2, 2, 2] for 3 tokens",
        ),
        ("[5, 6, 7]", "[]", "prompt 1, which has no tokens"),
        ("l_out-1", "Qcur-1", "`blk.1.Qcur` is there twice"),
        ("\"rms\": 3.0,", "", "missing field `rms`"),
    ] {
        let error = Trace::from_json(&REFERENCE.replace(from, to))
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "`{expected}` is not in: {error}");
    }
}
