//! The tuner on a GPU, and what sessions make of what it found.

use super::file::TuningFile;
use super::{Entry, OfModel, Setting, TuneOptions, Tuning};
use crate::device::wgpu::GpuBackend;
use crate::device::wgpu::adapter::GpuFeatures;
use crate::device::wgpu::context::Context;
use crate::device::wgpu::tampering::Tampering;
use crate::device::wgpu::testing::gpu;
use crate::device::{Activations, Backend, Device, DeviceInfo, GpuChoice, Tune};
use crate::diagnostics::{VerifyOptions, VerifyReport};
use crate::engine::{Engine, EngineBuilder};
use crate::gguf::WeightType;
use crate::kv_cache::{KvLayout, KvType};
use crate::model::{DecoderModel, WeightStorage, decoder_plan};
use crate::tiny;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A folder that is not there yet, and goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let name = format!("trueshot-tune-{name}-{}", std::process::id());
        Folder(std::env::temp_dir().join(name))
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).into_iter().flatten();
        let paths = entries.map(|entry| entry.unwrap().path());
        let is_of_tuning = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with("tuning_")
        };
        paths.filter(is_of_tuning).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Long enough for all candidates of a tiny model, however slow the adapter.
const ENOUGH: Duration = Duration::from_secs(100);

fn builder(folder: &Path, tune: Tune) -> EngineBuilder {
    Engine::builder_from(tiny::gguf(WeightType::Q8_0, None))
        .device(Device::Gpu(GpuChoice::Best))
        .context_length(2048)
        .activations(Activations::Int8)
        .tune(tune)
        .tuning_budget(ENOUGH)
        .cache_folder(Some(folder.to_owned()))
}

fn logits(engine: &Engine) -> Vec<f32> {
    let mut session = engine.session().unwrap();
    let prompt: Vec<u32> = (3..40).collect();
    session.eval(&prompt).unwrap();
    session.eval(&[5]).unwrap().to_vec()
}

#[test]
fn tuning_is_kept_and_the_next_engine_measures_nothing() {
    let Some(context) = gpu() else { return };
    let folder = Folder::new("kept");
    let first = builder(&folder.0, Tune::Again).build().unwrap();
    let report = first.tuning().unwrap();
    assert!(report.time > Duration::ZERO);
    let kernels = [
        "matvec ",
        "matvec_heads ",
        "matvec_gated ",
        "attention_few ",
    ];
    for kernel in kernels {
        let found = report
            .choices
            .iter()
            .find(|choice| choice.what.starts_with(kernel));
        let choice = found.unwrap_or_else(|| panic!("{kernel}: {report}"));
        assert!(choice.is_complete && choice.trials.len() > 1, "{choice}");
        assert_eq!(choice.trials[0].choice, choice.rule, "{choice}");
        assert!(
            choice
                .trials
                .iter()
                .all(|trial| trial.time > Duration::ZERO),
            "{choice}"
        );
    }
    let has_tiles = report
        .choices
        .iter()
        .any(|c| c.what.starts_with("matmul_coop "));
    assert_eq!(has_tiles, context.cooperative_matrix.is_some(), "{report}");
    let [file] = &folder.files()[..] else {
        panic!("{:?}", folder.files());
    };
    let written = fs::read(file).unwrap();

    let second = builder(&folder.0, Tune::Auto).build().unwrap();
    let kept = second.tuning().unwrap();
    assert_eq!(kept.time, Duration::ZERO);
    assert_eq!(kept.choices, report.choices);
    assert_eq!(fs::read(file).unwrap(), written);
    assert_eq!(logits(&first), logits(&second));
}

#[test]
fn tuning_ends_in_time_and_leaves_the_rest_to_the_rules() {
    let Some(_) = gpu() else { return };
    let folder = Folder::new("budget");
    let started = Instant::now();
    let untuned = builder(&folder.0, Tune::Off).build().unwrap();
    let without = started.elapsed();
    let started = Instant::now();
    let tune = |budget| {
        builder(&folder.0, Tune::Again)
            .tuning_budget(budget)
            .build()
            .unwrap()
    };
    let engine = tune(Duration::ZERO);
    let extra = started.elapsed().saturating_sub(without);
    assert!(extra < Duration::from_secs(2), "{extra:?}");
    let report = engine.tuning().unwrap();
    for choice in &report.choices {
        assert_eq!(
            (&choice.chosen, choice.trials.len()),
            (&choice.rule, 0),
            "{choice}"
        );
    }
    assert_eq!(logits(&engine), logits(&untuned));
    let report = tune(Duration::from_millis(300)).tuning().unwrap().clone();
    let cut = |choice: &&crate::device::TuningChoice| !choice.is_complete;
    for choice in report.choices.iter().filter(cut) {
        assert_eq!(choice.chosen, choice.rule, "{choice}");
    }
}

#[test]
fn tuning_that_is_off_touches_no_file() {
    let Some(_) = gpu() else { return };
    let folder = Folder::new("off");
    let build = |tune| {
        builder(&folder.0, tune)
            .tuning_budget(Duration::ZERO)
            .build()
            .unwrap()
    };
    assert!(build(Tune::Off).tuning().is_none());
    assert!(folder.files().is_empty());
    assert!(build(Tune::Again).tuning().is_some());
    let [file] = &folder.files()[..] else {
        panic!("{:?}", folder.files());
    };
    let written = fs::read(file).unwrap();
    assert!(build(Tune::Off).tuning().is_none());
    assert_eq!(fs::read(file).unwrap(), written);
}

#[test]
fn software_and_engines_without_a_folder_are_not_tuned_unasked() {
    let Some(context) = gpu() else { return };
    let folder = Folder::new("unasked");
    let build = |folder: Option<PathBuf>, tune| {
        let builder = builder(&PathBuf::new(), tune).cache_folder(folder);
        builder.tuning_budget(Duration::ZERO).build().unwrap()
    };
    let is_software = context.info.kind == crate::device::DeviceKind::SoftwareGpu;
    let engine = build(Some(folder.0.clone()), Tune::Auto);
    assert_eq!(engine.tuning().is_none(), is_software);
    assert_eq!(folder.files().is_empty(), is_software);
    assert!(build(None, Tune::Auto).tuning().is_none());
    assert!(build(None, Tune::Again).tuning().is_some());
}

fn info(driver: &str) -> DeviceInfo {
    DeviceInfo {
        name: "Some GPU (1)".to_owned(),
        kind: crate::device::DeviceKind::DiscreteGpu,
        backend: "vulkan".to_owned(),
        driver: driver.to_owned(),
        n_threads: 0,
    }
}

#[test]
fn files_that_are_damaged_or_of_another_driver_are_as_good_as_absent() {
    let folder = Folder::new("damaged");
    let file = TuningFile::new(&folder.0, &info("1.2"));
    let mut tuning = Tuning::default();
    tuning.models.insert("some".to_owned(), Default::default());
    assert_eq!(file.read(), Tuning::default());
    file.write(&tuning);
    assert_eq!(file.read(), tuning);
    let other = TuningFile::new(&folder.0, &info("1.3"));
    assert_eq!(other.read(), Tuning::default());

    let [path] = &folder.files()[..] else {
        panic!("{:?}", folder.files());
    };
    let good = fs::read(path).unwrap();
    for place in [0, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[place] ^= 1;
        fs::write(path, &bad).unwrap();
        assert_eq!(file.read(), Tuning::default(), "byte {place}");
    }
    fs::write(path, "{}").unwrap();
    assert_eq!(file.read(), Tuning::default());
    other.write(&tuning);
    assert_eq!((other.read(), file.read()), (tuning, Tuning::default()));
}

#[test]
fn what_there_was_no_time_for_is_left_to_two_more_starts() {
    let setting = Setting::Int8(true);
    let entry = |is_complete| Entry {
        rule: setting,
        chosen: setting,
        trials: Vec::new(),
        is_complete,
    };
    let has_rest = |is_complete: [bool; 2], int8, n_starts| {
        let mut tuning = Tuning::default();
        for (name, is_complete) in ["a", "b"].into_iter().zip(is_complete) {
            tuning.entries.insert(name.to_owned(), entry(is_complete));
        }
        let model = OfModel {
            subjects: vec!["a".to_owned(), "b".to_owned()],
            int8,
            n_starts,
        };
        tuning.models.insert("model".to_owned(), model);
        assert!(tuning.has_rest("another model"));
        tuning.has_rest("model")
    };
    assert!(!has_rest([true, true], None, 1));
    assert!(!has_rest([true, true], Some(entry(true)), 1));
    assert!(has_rest([true, true], Some(entry(false)), 1));
    assert!(has_rest([true, false], None, 1) && has_rest([true, false], None, 2));
    assert!(!has_rest([true, false], None, 3));
}

/// Replaces what a file chooses for every product of a kernel.
fn force(folder: &Folder, context: &DeviceInfo, kernel: &str, setting: Setting) {
    let file = TuningFile::new(&folder.0, context);
    let mut tuning = file.read();
    let mut n = 0;
    for (name, entry) in &mut tuning.entries {
        if name.starts_with(kernel) {
            entry.chosen = setting;
            entry.is_complete = true;
            n += 1;
        }
    }
    assert!(n > 0, "{tuning:?}");
    file.write(&tuning);
}

#[test]
fn a_slow_candidate_is_not_chosen() {
    let Some(_) = gpu() else { return };
    let folder = Folder::new("slow");
    let spin = "if WORKGROUP != 128u { for (var i = 0u; i < 200000u; i++) { sum = sum * 0.5 + f32(i & 3u); } }";
    let from = "    var sum = 0.0;\n    if lane < n_sums {";
    let to = format!("    var sum = 0.0;\n    {spin}\n    if lane < n_sums {{").leak();
    let damage = Tampering::wgsl("matvec", from, to);
    let engine = builder(&folder.0, Tune::Again)
        .tamper(damage)
        .build()
        .unwrap();
    let report = engine.tuning().unwrap();
    let choices = report
        .choices
        .iter()
        .filter(|c| c.what.starts_with("matvec "));
    let mut n = 0;
    for choice in choices {
        n += 1;
        assert!(choice.chosen.contains(" in 128, "), "{choice}");
        let slow = choice
            .trials
            .iter()
            .filter(|trial| !trial.choice.contains(" in 128, "));
        assert!(slow.count() > 1, "{choice}");
    }
    assert!(n > 1, "{report}");
}

#[test]
fn verify_tries_what_was_chosen_and_finds_it_wrong() {
    let Some(context) = gpu() else { return };
    let folder = Folder::new("wrong");
    let build = |tune| builder(&folder.0, tune).tuning_budget(Duration::ZERO);
    drop(build(Tune::Again).build().unwrap());
    let teams = crate::kernels::teams::Teams {
        size: 8,
        workgroup: 256,
        pairs: 2,
    };
    force(&folder, &context.info, "matvec ", Setting::Teams(teams));
    let damage = || {
        let from = "partial[i + 3u * stride]);";
        let to = "partial[i + 3u * stride]) + select(0.0, 1.0, WORKGROUP == 256u);";
        Tampering::wgsl("matvec", from, to)
    };
    let verify = |engine: Engine| -> VerifyReport {
        let options = VerifyOptions {
            prompt: "w1 w2 w3 w4 w5".to_owned(),
            ..Default::default()
        };
        engine.verify(&options).unwrap()
    };
    let folder = Some(folder.0.clone());
    let tampered = |tune| {
        build(tune)
            .tamper(damage())
            .cache_folder(folder.clone())
            .build()
    };
    let by_rule = verify(tampered(Tune::Off).unwrap());
    assert!(by_rule.passed(), "{by_rule}");
    let tuned = tampered(Tune::Auto).unwrap();
    let report = tuned.tuning().unwrap().to_string();
    assert!(
        report.contains("teams of 8 in 256, 2 pairs instead of"),
        "{report}"
    );
    let found = verify(tuned);
    assert!(!found.passed(), "{found}");
    assert!(found.to_string().contains("attn_out"), "{found}");
    let sound = build(Tune::Auto).build().unwrap();
    let report = verify(sound);
    assert!(report.passed(), "{report}");
}

#[test]
fn settings_that_no_kernel_takes_are_not_used() {
    let Some(context) = gpu() else { return };
    let folder = Folder::new("foreign");
    let build = |tune| {
        builder(&folder.0, tune)
            .tuning_budget(Duration::ZERO)
            .build()
            .unwrap()
    };
    let want = logits(&build(Tune::Again));
    for teams in [(48, 128, 1), (8, 96, 1), (8, 128, 3), (0, 0, 0)] {
        let (size, workgroup, pairs) = teams;
        let teams = crate::kernels::teams::Teams {
            size,
            workgroup,
            pairs,
        };
        force(&folder, &context.info, "matvec", Setting::Teams(teams));
        assert_eq!(logits(&build(Tune::Auto)), want, "{teams}");
    }
    force(
        &folder,
        &context.info,
        "matvec",
        Setting::Tile([1, 2, 3, 4, 5]),
    );
    assert_eq!(logits(&build(Tune::Auto)), want);
}

/// Tunes a tiny model whose activations are 8-bit integers but may be floats: whether they stay integers, and what the
/// report says of it.
fn int8_stays(damage: Tampering) -> (bool, String) {
    let context = Context::new(&GpuChoice::Best, GpuFeatures::default()).unwrap();
    let gguf = Arc::new(tiny::gguf(WeightType::Q8_0, None));
    let model = DecoderModel::from_gguf(gguf, WeightStorage::Native).unwrap();
    let context = context.tampered(damage);
    let weights = model.weights.clone();
    let mut backend = GpuBackend::new(weights, context, Activations::Int8, &mut |_, _| ()).unwrap();
    let plan = decoder_plan(&model, 4, 1).unwrap();
    let kv = KvLayout {
        layers: model.spec.kv_layers(),
        capacity: 256,
        ty: KvType::F16,
    };
    let options = TuneOptions {
        tune: Tune::Again,
        folder: None,
        may_float: true,
        budget: ENOUGH,
    };
    backend.tune(&plan, &kv, &options).unwrap();
    let report = backend.tuning().unwrap();
    let found = report
        .choices
        .iter()
        .find(|c| c.what == "activations of few rows");
    let choice = found.unwrap_or_else(|| panic!("{report}"));
    assert!(choice.is_complete, "{choice}");
    (backend.rounding().int8_rows > 0, choice.chosen.clone())
}

#[test]
fn activations_are_rounded_where_that_is_faster_and_not_where_it_is_slower() {
    let Some(_) = gpu() else { return };
    let spin = "for (var i = 0u; i < 20000u; i++) { sum = sum * 0.5 + f32(i & 3u); }";
    let from = "let sum = dot(weight.scale, vec2(f32(low), f32(high)));";
    let to = format!("var sum = dot(weight.scale, vec2(f32(low), f32(high)));\n{spin}").leak();
    let slow_int8 = Tampering::wgsl("matvec_gated", from, to);
    assert_eq!(int8_stays(slow_int8), (false, "f32".to_owned()));
    let from = "sums += products8(weight0, weight1, weight2, weight3, 0u, src[at], src[at + 1u]);";
    let spin = "for (var i = 0u; i < 20000u; i++) { sums = sums * 0.5 + f32(i & 3u); }";
    let to = format!("{from}\n{spin}").leak();
    let slow_floats = Tampering::wgsl_of_feature("matvec_gated", from, to);
    assert_eq!(int8_stays(slow_floats), (true, "int8".to_owned()));
}
