//! Faults of every kind that a hunt for a wrong answer suspects, each done on purpose: the right tool must name
//! the right place. A fault changes bytes or WGSL, and never what judges.

mod kernels;
mod on_device;

use crate::device::wgpu::tampering::Tampering;
use crate::device::wgpu::testing::gpu;
use crate::device::{Activations, Device, GpuChoice};
use crate::diagnostics::verify::{Checked, VerifyOptions, VerifyReport};
use crate::engine::{Engine, EngineBuilder};
use crate::gguf::WeightType;
use crate::tiny;

/// Damage on the GPU, and what `Engine::verify` must say of it.
struct Fault {
    what: &'static str,
    activations: Activations,
    damage: Tampering,
    /// The check that names it.
    checked: Checked,
    /// The step or tensor that it names.
    place: &'static str,
    /// Steps, by their names in a layer, that have the same fault.
    also: &'static [&'static str],
}

/// A tiny model on the GPU, with room for every way that attention goes.
fn builder(activations: Activations) -> EngineBuilder {
    Engine::builder_from(tiny::gguf(WeightType::Q8_0, None))
        .device(Device::Gpu(GpuChoice::Best))
        .context_length(2048)
        .activations(activations)
}

fn options() -> VerifyOptions {
    VerifyOptions {
        prompt: "w1 w2 w3 w4 w5 w6 w7 w8 w9".to_owned(),
        ..Default::default()
    }
}

fn verify(fault: Fault) -> (VerifyReport, Fault) {
    let Fault {
        what,
        activations,
        damage,
        ..
    } = fault;
    let engine = builder(activations).tamper(damage).build();
    let engine = engine.unwrap_or_else(|error| panic!("{what}: {error}"));
    let report = engine.verify(&options());
    let report = report.unwrap_or_else(|error| panic!("{what}: {error}"));
    let fault = Fault {
        damage: Tampering::default(),
        ..fault
    };
    (report, fault)
}

/// Each fault is found by its check, at its place, and no check blames another step.
#[track_caller]
fn assert_found(faults: Vec<Fault>) {
    if gpu().is_none() {
        return;
    }
    for fault in faults {
        let (report, fault) = verify(fault);
        let Fault {
            what,
            checked,
            place,
            ..
        } = fault;
        let by_check = report.problems().find(|(found_by, _)| *found_by == checked);
        let Some((_, problem)) = by_check else {
            panic!("{what}: not seen by the check of {checked}: {report}");
        };
        assert_eq!(problem.place, place, "{what}: {report}");
        // Steps are compared on what the device had, so that a fault is seen where it is and nowhere else.
        let in_layer = |place: &str| place.rsplit('.').next().unwrap_or(place).to_owned();
        for (checked, problem) in report.problems() {
            let is_of_steps = [Checked::Kernels, Checked::Steps].contains(&checked);
            let blamed = in_layer(&problem.place);
            assert!(
                !is_of_steps || blamed == in_layer(place) || fault.also.contains(&blamed.as_str()),
                "{what}: the check of {checked} blames `{}`: {report}",
                problem.place
            );
        }
    }
}

#[test]
fn what_is_not_damaged_verifies() {
    if gpu().is_none() {
        return;
    }
    for activations in [Activations::F32, Activations::F16, Activations::Int8] {
        let engine = builder(activations).build().unwrap();
        let report = engine.verify(&options()).unwrap();
        assert!(report.passed(), "{activations:?}: {report}");
    }
}
