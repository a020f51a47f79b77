//! Faults of every kind that a hunt for a wrong answer suspects, each done on purpose: the right tool must name
//! the right place. A fault changes bytes or WGSL, and never what judges.

mod families;
mod in_file;
mod kernels;
mod on_device;
mod recurrent;
mod table;

use crate::device::wgpu::tampering::Tampering;
use crate::device::wgpu::testing::gpu;
use crate::device::{Activations, Device, GpuChoice};
use crate::diagnostics::verify::{Checked, VerifyOptions, VerifyReport};
use crate::engine::{Engine, EngineBuilder};
use crate::error::{Error, Result};
use crate::gguf::{Gguf, WeightType};
use crate::kv_cache::KvType;
use crate::support::shared;
use crate::tiny;

/// Something that is wrong, and what must be said of it.
struct Fault {
    what: &'static str,
    damage: Damage,
    tool: Tool,
    /// The step or tensor that is named.
    place: &'static str,
    /// What else the checks of steps and kernels may blame, by its name in a layer: where damage to a tensor
    /// shows, or a step of the same kernel.
    also: &'static [&'static str],
}

enum Damage {
    /// To what runs on the GPU.
    Gpu(Activations, Tampering),
    /// To what runs on the GPU, of a model whose layers see a window of positions.
    Windowed(Tampering),
    /// To what runs on the GPU, of a model with experts.
    Experts(Activations, Tampering),
    /// To what runs on the GPU, of a model whose experts are chosen by scores and biases.
    BiasedExperts(Tampering),
    /// To what runs on the GPU, of a model with latent attention.
    Latent(Tampering),
    /// To what runs on the GPU, of a model with states: its file.
    Recurrent(&'static str, Tampering),
    /// To what runs on the GPU, of this model of the reference data.
    Model(&'static str, Tampering),
    /// To the file: its bytes.
    File(Vec<u8>),
}

/// What must name it.
#[derive(Clone, Copy)]
enum Tool {
    /// `Engine::verify`, by this check.
    Verify(Checked),
    /// The load, by an error.
    Load,
    /// An answer under way, by an error: nobody asked.
    Running,
}

/// A tiny model, with room for every way that attention goes.
fn builder(activations: Activations) -> EngineBuilder {
    let kv = match activations {
        // A cache of 16 bits would hold nothing that 16-bit activations cannot.
        Activations::F16 => KvType::F32,
        _ => KvType::F16,
    };
    builder_of(tiny::gguf(WeightType::Q8_0, None))
        .activations(activations)
        .kv(kv)
}

fn builder_of(gguf: Gguf) -> EngineBuilder {
    Engine::builder_from(gguf)
        .device(Device::Gpu(GpuChoice::Best))
        .context_length(2048)
}

fn options() -> VerifyOptions {
    VerifyOptions {
        prompt: "w1 w2 w3 w4 w5 w6 w7 w8 w9".to_owned(),
        ..Default::default()
    }
}

impl Damage {
    /// `None` where the model is not here.
    fn engine(self) -> Option<Result<Engine>> {
        Some(match self {
            Damage::Gpu(activations, tampering) => builder(activations).tamper(tampering).build(),
            Damage::Windowed(tampering) => {
                let gguf = Gguf::open(shared("arch/gemma3.gguf")?).unwrap();
                let builder = builder_of(gguf).activations(Activations::F32);
                builder.tamper(tampering).build()
            }
            Damage::Experts(activations, tampering) => {
                // Of floats, which nothing rounds, or quantised.
                let file = match activations {
                    Activations::F32 => "arch/gpt-oss.gguf",
                    _ => "arch/llama-moe-q8_0.gguf",
                };
                let gguf = Gguf::open(shared(file)?).unwrap();
                let builder = builder_of(gguf).activations(activations);
                builder.context_length(256).tamper(tampering).build()
            }
            Damage::BiasedExperts(tampering) => {
                let gguf = Gguf::open(shared("arch/glm4moe.gguf")?).unwrap();
                let builder = builder_of(gguf).activations(Activations::F32);
                builder.context_length(256).tamper(tampering).build()
            }
            Damage::Latent(tampering) => {
                let gguf = Gguf::open(shared("arch/deepseek2-v3.gguf")?).unwrap();
                let builder = builder_of(gguf).activations(Activations::F32);
                builder.context_length(256).tamper(tampering).build()
            }
            Damage::Recurrent(file, tampering) => {
                let gguf = Gguf::open(shared(&format!("arch/{file}.gguf"))?).unwrap();
                let builder = builder_of(gguf).activations(Activations::F32);
                builder.context_length(256).tamper(tampering).build()
            }
            Damage::Model(name, tampering) => {
                let gguf = Gguf::open(shared(&format!("arch/{name}.gguf"))?).unwrap();
                Engine::builder_from(gguf)
                    .device(Device::Gpu(GpuChoice::Best))
                    .activations(Activations::F32)
                    .tamper(tampering)
                    .build()
            }
            Damage::File(bytes) => {
                Gguf::from_bytes(bytes).and_then(|gguf| builder_of(gguf).build())
            }
        })
    }
}

/// Each fault is found by its tool, at its place, and no check blames another step.
#[track_caller]
fn assert_found(faults: Vec<Fault>) {
    if gpu().is_none() {
        return;
    }
    for fault in faults {
        let Fault {
            what,
            damage,
            tool,
            place,
            also,
        } = fault;
        let Some(engine) = damage.engine() else {
            continue;
        };
        let engine = match (tool, engine) {
            (Tool::Load, Ok(_)) => panic!("{what}: was loaded"),
            (Tool::Load, Err(error)) => {
                assert!(error.to_string().contains(place), "{what}: {error}");
                continue;
            }
            (_, engine) => engine.unwrap_or_else(|error| panic!("{what}: {error}")),
        };
        match tool {
            Tool::Verify(checked) => {
                let report = engine.verify(&options());
                let report = report.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_report(what, &report, checked, place, also);
            }
            Tool::Running | Tool::Load => {
                let error = answer(&engine).expect_err(what);
                let step = match &error {
                    Error::WrongResult { step, .. } => step.as_str(),
                    error => panic!("{what}: {error}"),
                };
                assert_eq!(step, place, "{what}: {error}");
            }
        }
    }
}

fn answer(engine: &Engine) -> Result<String> {
    let mut session = engine.session()?;
    session
        .generate(&options().prompt, &tiny::greedy(40))?
        .text()
}

#[track_caller]
fn assert_report(what: &str, report: &VerifyReport, checked: Checked, place: &str, also: &[&str]) {
    let Some((_, problem)) = report.problems().find(|(by, _)| *by == checked) else {
        panic!("{what}: not seen by the check of {checked}: {report}");
    };
    assert_eq!(problem.place, place, "{what}: {report}");
    // Steps are compared on what the device had, so that a fault is seen where it is and nowhere else.
    let in_layer = |place: &str| place.rsplit('.').next().unwrap_or(place).to_owned();
    for (checked, problem) in report.problems() {
        let is_of_steps = [Checked::Kernels, Checked::Steps].contains(&checked);
        let blamed = in_layer(&problem.place);
        assert!(
            !is_of_steps || blamed == in_layer(place) || also.contains(&blamed.as_str()),
            "{what}: the check of {checked} blames `{}`: {report}",
            problem.place
        );
    }
}

#[test]
fn nothing_is_said_of_what_is_not_damaged() {
    if gpu().is_none() {
        return;
    }
    for activations in [Activations::F32, Activations::F16, Activations::Int8] {
        let engine = builder(activations).build().unwrap();
        let report = engine.verify(&options()).unwrap();
        assert!(report.passed(), "{activations:?}: {report}");
        answer(&engine).unwrap();
    }
}
