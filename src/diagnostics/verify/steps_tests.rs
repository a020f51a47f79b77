//! An executor that is wrong on purpose: verify must say no, and name the step.

use super::depth::Depth;
use super::divergence::{Finding, Phase};
use super::judge::Verified;
use super::steps::{StepReport, check_steps};
use crate::device::Rounding;
use crate::diagnostics::faulty::{Fault, Faulty, Setup, setup};

const TOKENS: [u32; 5] = [1, 260, 270, 280, 290];

fn run(step: &str, phase: Phase, fault: Fault) -> StepReport {
    run_in(Rounding::default(), step, phase, fault)
}

fn run_in(rounding: Rounding, step: &str, phase: Phase, fault: Fault) -> StepReport {
    let setup = setup();
    let mut faulty = Faulty::new(&setup, step, phase, fault);
    let Setup { weights, plan, kv } = setup;
    let verified = Verified {
        weights,
        plan,
        kv,
        rounding,
    };
    check_steps(&verified, &mut faulty, &TOKENS, 2, Depth::Full).unwrap()
}

fn assert_names(step: &str, phase: Phase, fault: Fault) -> Finding {
    let report = run(step, phase, fault);
    let Some(found) = report.divergence.as_ref() else {
        panic!("{fault:?} in `{step}` was not seen: {report:?}");
    };
    assert_eq!(
        (found.step.as_str(), found.phase),
        (step, phase),
        "{fault:?}: {report:?}"
    );
    assert!(found.to_string().contains(step), "{found}");
    found.finding.clone()
}

#[test]
fn verify_passes_what_is_right() {
    let report = run("none", Phase::Prefill, Fault::None);
    assert!(report.divergence.is_none(), "{report:?}");
    assert_eq!(report.agreed.n_steps, 3 * setup().plan.steps.len());
}

#[test]
fn verify_names_the_step_that_is_zero() {
    for step in ["embd", "blk.0.attn_q", "blk.1.ffn_gated", "result_output"] {
        assert_eq!(
            assert_names(step, Phase::Prefill, Fault::Zeros),
            Finding::AllZero
        );
        assert_eq!(
            assert_names(step, Phase::Decode, Fault::Zeros),
            Finding::AllZero
        );
    }
}

#[test]
fn verify_names_the_norm_with_another_epsilon() {
    // A tenth of the epsilon in the norm of the embedding: the decode step before is right.
    let finding = assert_names("blk.0.attn_norm", Phase::Prefill, Fault::WrongEpsilon);
    assert!(matches!(finding, Finding::Differs { .. }), "{finding:?}");
}

#[test]
fn verify_names_the_step_whose_tail_is_not_written() {
    for step in ["blk.0.ffn_up", "blk.1.kqv_out", "blk.1.l_out"] {
        let report = run(step, Phase::Prefill, Fault::TailRow);
        let found = report.divergence.as_ref().unwrap();
        assert_eq!(
            (found.step.as_str(), found.row, found.position),
            (step, 4, 4),
            "{report:?}"
        );
        assert_names(step, Phase::Decode, Fault::TailColumns);
    }
}

#[test]
fn verify_allows_f16_activations_their_rounding_and_no_more() {
    let rounding = Rounding {
        int8_rows: 0,
        f16_above: Some(4),
    };
    let passes = |step, phase, fault| run_in(rounding, step, phase, fault).divergence.is_none();
    for step in ["blk.1.attn_output", "blk.1.kqv_out"] {
        assert!(passes(step, Phase::Prefill, Fault::OneElement), "{step}");
        assert!(!passes(step, Phase::Decode, Fault::OneElement), "{step}");
        let in_f32 = run(step, Phase::Prefill, Fault::OneElement);
        assert!(in_f32.divergence.is_some());
    }
    assert!(!passes(
        "blk.1.attn_norm",
        Phase::Prefill,
        Fault::OneElement
    ));
    assert!(!passes("blk.0.ffn_up", Phase::Prefill, Fault::TailRow));
    assert!(!passes("blk.0.ffn_up", Phase::Prefill, Fault::TailColumns));
}

#[test]
fn verify_names_the_step_that_is_not_finite() {
    for fault in [Fault::NotANumber, Fault::Infinite] {
        let finding = assert_names("blk.0.Vcur", Phase::Prefill, fault);
        assert!(matches!(finding, Finding::NotFinite { .. }), "{finding:?}");
        assert_names("result_norm", Phase::Decode, fault);
    }
}

#[test]
fn verify_names_one_wrong_element_with_both_values() {
    let report = run("blk.1.attn_output", Phase::Decode, Fault::OneElement);
    let found = report.divergence.as_ref().unwrap();
    assert_eq!(
        (found.step.as_str(), found.position, found.column),
        ("blk.1.attn_output", 5, 62)
    );
    let Finding::Differs {
        found,
        expected,
        bound,
    } = found.finding
    else {
        panic!("{report:?}")
    };
    assert!((found - expected).abs() > bound, "{report:?}");
}

#[test]
fn verify_names_the_cache_store() {
    for fault in [Fault::Zeros, Fault::OneElement] {
        assert_names("blk.1.kv_cache", Phase::Prefill, fault);
    }
}

#[test]
fn verify_names_the_step_that_was_left_out() {
    let finding = assert_names("blk.0.ffn_norm", Phase::Prefill, Fault::Skipped);
    assert_eq!(finding, Finding::Missing);
    let finding = assert_names("result_output", Phase::Decode, Fault::Skipped);
    assert_eq!(finding, Finding::Missing);
}

#[test]
fn verify_names_the_rotation_by_a_wrong_position() {
    assert_names("blk.0.Qcur", Phase::Decode, Fault::WrongPosition);
    assert_names("blk.1.Kcur", Phase::Prefill, Fault::WrongPosition);
}

#[test]
fn verify_names_a_run_that_is_wrong_when_nobody_watches() {
    for phase in [Phase::Prefill, Phase::Decode] {
        let finding = assert_names("result_output", phase, Fault::WrongUnwatched);
        assert!(
            matches!(finding, Finding::UnobservedDiffers { .. }),
            "{finding:?}"
        );
    }
}
