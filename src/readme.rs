//! The README's tables, written from the code.

use crate::device::Rounding;
use crate::gguf::WeightType;
use crate::model::architectures;
use crate::{Device, Engine, tiny};
use std::collections::BTreeSet;
use std::fmt::Write;

const README: &str = include_str!("../README.md");

/// The README with `table` between the marks of that name; `None` where there are none.
fn with_table(readme: &str, name: &str, table: &str) -> Option<String> {
    let (begin, end) = (
        format!("<!-- {name}: begin -->\n"),
        format!("<!-- {name}: end -->"),
    );
    let (before, rest) = readme.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n{table}\n{end}{after}"))
}

#[track_caller]
fn check(name: &str, table: &str) {
    let expected = with_table(README, name, table).expect("marks");
    assert!(
        expected == README,
        "README.md: between the marks of `{name}` must stand\n\n{table}"
    );
}

/// Whether a model of this type runs on a device that is always there.
fn runs(ty: WeightType, device: Device) -> bool {
    let engine = Engine::builder_from(tiny::gguf(ty, None))
        .device(device)
        .build();
    engine
        .and_then(|engine| Ok(engine.session()?.eval(&[259, 260])?.len()))
        .is_ok()
}

/// What its products may be computed in on a GPU: `Activations`.
fn classes(ty: WeightType) -> String {
    let classes = [
        ("f32", true),
        ("f16", Rounding::fits_f16(ty)),
        ("int8", ty.is_quantised()),
    ];
    let has: Vec<&str> = classes.iter().filter(|c| c.1).map(|c| c.0).collect();
    has.join(", ")
}

fn weight_types() -> String {
    let mut types = WeightType::ALL;
    types.sort_by_key(|ty| {
        (
            std::cmp::Reverse(ty.block_bytes() * 256 / ty.block_len()),
            *ty as u8,
        )
    });
    let mut table =
        "| weights | bits each | `gpu` | `cpu` | `reference` |\n|---|---|---|---|---|\n".to_owned();
    for ty in types {
        let bits = (ty.block_bytes() * 8) as f64 / ty.block_len() as f64;
        let cell = |device| if runs(ty, device) { "f32" } else { "no" };
        let (cpu, reference) = (cell(Device::Cpu), cell(Device::Reference));
        let gpu = classes(ty);
        let _ = writeln!(table, "| {ty:?} | {bits} | {gpu} | {cpu} | {reference} |");
    }
    table
}

#[test]
fn readme_has_the_weight_types_that_run() {
    check("weight types", &weight_types());
}

#[test]
fn readme_has_the_architectures_that_run() {
    let mut table = "| architecture | models |\n|---|---|\n".to_owned();
    let mut rows: Vec<(&str, &str)> = architectures().collect();
    rows.sort();
    for (name, models) in rows {
        let _ = writeln!(table, "| `{name}` | {models} |");
    }
    check("architectures", &table);
}

/// A row of the table of architectures takes what it does not state from another one.
#[test]
fn architectures_have_models_of_their_own() {
    let models: BTreeSet<&str> = architectures().map(|(_, models)| models).collect();
    assert_eq!(models.len(), architectures().count());
}

#[test]
fn a_table_that_is_not_up_to_date_is_found() {
    let readme = "a\n<!-- t: begin -->\n\nold\n\n<!-- t: end -->\nb";
    let expected = "a\n<!-- t: begin -->\n\nnew\n\n<!-- t: end -->\nb";
    assert_eq!(with_table(readme, "t", "new\n").as_deref(), Some(expected));
    assert_eq!(
        with_table(expected, "t", "new\n").as_deref(),
        Some(expected)
    );
    assert_eq!(with_table(readme, "u", "new\n"), None);
}
