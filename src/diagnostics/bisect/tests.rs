use super::*;
use crate::device::{DeviceInfo, DeviceKind, Rounding};
use crate::diagnostics::faulty::{Fault, Faulty, Setup, setup};
use crate::diagnostics::verify::{Check, Checked, Depth, Outcome, Problem, VerifyReport};

const TOKENS: [u32; 5] = [1, 260, 270, 280, 290];

fn search(step: &str, phase: Phase, fault: Fault) -> BisectReport {
    let setup = setup();
    let faulty = Faulty::new(&setup, step, phase, fault);
    let Setup { weights, plan, kv } = setup;
    let verified = Verified {
        weights,
        plan,
        kv,
        rounding: Rounding::default(),
    };
    super::search(&verified, Box::new(faulty), &TOKENS).unwrap()
}

#[test]
fn bisect_names_the_step_that_turns_the_answer_wrong() {
    for (step, phase, fault) in [
        ("embd", Phase::Prefill, Fault::Zeros),
        ("blk.0.attn_norm", Phase::Decode, Fault::OneElement),
        ("blk.1.kv_cache", Phase::Prefill, Fault::Zeros),
        ("blk.0.Qcur", Phase::Decode, Fault::WrongPosition),
        ("blk.1.ffn_gated", Phase::Decode, Fault::NotANumber),
        ("result_output", Phase::Prefill, Fault::Zeros),
    ] {
        let report = search(step, phase, fault);
        let culprit = report
            .culprit
            .as_ref()
            .unwrap_or_else(|| panic!("{step}: {report}"));
        assert_eq!(
            (culprit.steps.as_slice(), culprit.phase),
            (&[step.to_owned()][..], phase)
        );
        assert!(culprit.is_only_one(report.bound), "{report}");
        assert!(report.to_string().contains(step) && report.to_string().contains("the only one"));
    }
}

#[test]
fn bisect_says_where_another_step_is_wrong_too() {
    let report = search("*.ffn_out", Phase::Prefill, Fault::Zeros);
    let culprit = report.culprit.as_ref().unwrap();
    assert_eq!(culprit.steps, ["blk.0.ffn_out"]);
    assert!(!culprit.is_only_one(report.bound), "{report}");
    assert!(report.to_string().contains("not the only one"), "{report}");
}

#[test]
fn bisect_finds_nothing_where_nothing_is_wrong() {
    let report = search("none", Phase::Prefill, Fault::None);
    assert!(report.culprit.is_none(), "{report}");
    assert_eq!(report.errors.len(), 2);
    assert!(report.errors.iter().all(|(_, error)| *error == 0.0));
}

fn trial(without: Option<&'static str>, is_right: bool) -> FeatureTrial {
    let outcome = match is_right {
        true => Outcome::Right(String::new()),
        false => Outcome::Wrong(Problem {
            place: "blk.0.attn_q".to_owned(),
            message: "is zero".to_owned(),
            divergence: None,
        }),
    };
    let device = DeviceInfo {
        name: String::new(),
        kind: DeviceKind::SoftwareGpu,
        backend: String::new(),
        driver: String::new(),
        n_threads: 0,
    };
    let check = Check {
        checked: Checked::Steps,
        outcome,
        seconds: 0.0,
    };
    let report = VerifyReport {
        model: String::new(),
        device,
        depth: Depth::Quick,
        adapters: Vec::new(),
        checks: vec![check],
        file: None,
        upload: None,
    };
    FeatureTrial {
        without,
        outcome: TrialOutcome::Verified(Box::new(report)),
    }
}

#[test]
fn the_feature_without_which_all_is_right_is_named() {
    let report = |trials: &[(Option<&'static str>, bool)]| FeatureReport {
        trials: trials
            .iter()
            .map(|&(without, is_right)| trial(without, is_right))
            .collect(),
    };
    let one = report(&[
        (None, false),
        (Some("fusion"), false),
        (Some("subgroups"), true),
    ]);
    assert_eq!(one.culprits(), ["subgroups"]);
    assert!(
        one.to_string().ends_with("WRONG: right without subgroups"),
        "{one}"
    );
    let none = report(&[(None, false), (Some("fusion"), false)]);
    assert!(none.culprits().is_empty() && none.to_string().contains("no single feature"));
    let right = report(&[(None, true)]);
    assert!(right.culprits().is_empty() && right.to_string().ends_with("right: with all features"));
    let both = report(&[
        (None, false),
        (Some("subgroups"), true),
        (Some("cooperative_matrices"), true),
    ]);
    assert_eq!(both.culprits(), ["cooperative_matrices"]);
    let mut uncompiled = one;
    uncompiled.trials[0].outcome = TrialOutcome::Failed("line 3".to_owned());
    assert_eq!(uncompiled.culprits(), ["subgroups"]);
    assert!(
        uncompiled.to_string().contains("FAILED: line 3"),
        "{uncompiled}"
    );
}

#[test]
fn a_search_where_no_engine_can_be_made_is_an_error() {
    let no_engine = |_| {
        Err(crate::Error::NoDevice {
            message: "none".to_owned(),
        })
    };
    let found = find_feature(no_engine, &Default::default());
    assert!(matches!(found, Err(crate::Error::NoDevice { .. })));
}
