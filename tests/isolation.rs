//! Parts of a model and of a run by themselves: what `verify --bisect` and `--first-layers` are made of.

mod support;
#[path = "support/tiny.rs"]
mod tiny;

use support::{centred_relative_error, devices};
use tiny::{engine, tokens};
use trueshot::gguf::WeightType;
use trueshot::{Activations, Device, Engine, Error, GpuFeatures, KvType, VerifyOptions};

fn builder(device: Device) -> trueshot::EngineBuilder {
    Engine::builder_from(tiny::gguf(WeightType::Q8_0, None))
        .device(device)
        .kv(KvType::F32)
}

#[test]
fn any_steps_can_run_on_the_reference() {
    for device in devices() {
        for activations in [Activations::F32, Activations::Int8] {
            let engine = builder(device.clone()).activations(activations);
            let engine = engine.build().unwrap();
            for n_tokens in [1, 3, 9] {
                let tokens = tokens(n_tokens);
                let n_steps = engine.plan().steps.len();
                let all = engine.logits_with_reference(&tokens, 0..n_steps).unwrap();
                let none = engine.logits_with_reference(&tokens, 0..0).unwrap();
                assert_eq!(none, engine.session().unwrap().eval(&tokens).unwrap());
                for steps in [0..1, 1..n_steps, 5..20, n_steps - 1..n_steps] {
                    let some = engine.logits_with_reference(&tokens, steps.clone());
                    let error = centred_relative_error(&some.unwrap(), &all);
                    // Int8: a rounding may fall to the other side.
                    let bound = match activations {
                        Activations::Int8 => 0.02,
                        _ => 1e-4,
                    };
                    assert!(
                        error <= bound,
                        "{device}, {activations:?}, {steps:?}: {error:e}"
                    );
                }
            }
        }
    }
}

#[test]
fn steps_and_tokens_that_there_are_not_are_refused() {
    let engine = engine(Device::Cpu);
    let n_steps = engine.plan().steps.len();
    for (tokens, steps) in [
        (vec![], 0..1),
        (vec![9_999], 0..1),
        (vec![1], 0..n_steps + 1),
        (vec![1; engine.plan().max_rows + 1], 0..1),
    ] {
        let error = engine.logits_with_reference(&tokens, steps).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    }
}

#[test]
fn the_first_layers_run_alone_and_are_those_of_the_whole() {
    let tokens = tokens(6);
    let l_out = |engine: &Engine| {
        let mut seen = Vec::new();
        let mut session = engine.session().unwrap();
        let observed = session.observe(&tokens, &mut |step| {
            if step.name == "blk.0.l_out" {
                seen = step.values.to_vec();
            }
        });
        observed.unwrap();
        seen
    };
    for device in devices() {
        let whole = builder(device.clone()).build().unwrap();
        let first = builder(device.clone()).layers(1).build().unwrap();
        assert_eq!(first.spec().layers.len(), 1);
        assert!(first.plan().steps.len() < whole.plan().steps.len());
        assert_eq!(l_out(&first), l_out(&whole), "{device}");
        assert!(
            first.verify(&VerifyOptions::default()).unwrap().passed(),
            "{device}"
        );
        let logits = |engine: &Engine| engine.session().unwrap().eval(&tokens).unwrap().to_vec();
        assert_ne!(logits(&first), logits(&whole), "{device}");
    }
    for n_layer in [0, 3] {
        let refused = builder(Device::Cpu).layers(n_layer).build().map(drop);
        assert!(matches!(
            refused,
            Err(Error::InvalidArgument { name: "layers", .. })
        ));
    }
}

#[test]
fn bisect_finds_nothing_in_what_is_right() {
    for device in devices() {
        let engine = builder(device.clone()).build().unwrap();
        let report = engine.bisect(&VerifyOptions::default()).unwrap();
        assert!(report.culprit.is_none(), "{device}: {report}");
        assert_eq!(report.errors.len(), 2);
    }
}

#[test]
fn every_feature_can_be_left_out() {
    let Some(device) = support::gpu() else { return };
    let tokens = tokens(9);
    let reference = builder(Device::Reference).build().unwrap();
    let expected = reference.session().unwrap().eval(&tokens).unwrap().to_vec();
    for (name, features) in GpuFeatures::each_left_out() {
        let engine = builder(device.clone())
            .gpu_features(features)
            .activations(Activations::Int8)
            .build()
            .unwrap();
        let report = engine.verify(&VerifyOptions::default()).unwrap();
        assert!(report.passed(), "without {name}: {report}");
        let mut session = engine.session().unwrap();
        let error = centred_relative_error(session.eval(&tokens).unwrap(), &expected);
        assert!(error <= 0.05, "without {name}: {error:e}");
    }
}
