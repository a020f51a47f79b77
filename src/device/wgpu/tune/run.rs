//! From options to results: what was kept, what is measured, what is kept then.

use super::file::TuningFile;
use super::tuner::{Options, measure};
use super::{Entry, Setting, Tuning};
use crate::device::wgpu::Shared;
use crate::device::{DeviceKind, Tune, TuningChoice, TuningReport, TuningTrial};
use crate::error::Result;
use crate::kv_cache::KvLayout;
use crate::plan::Plan;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::time::{Duration, Instant};

/// What [`GpuBackend::tune`](crate::device::wgpu::GpuBackend::tune) may do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TuneOptions<'a> {
    pub(crate) tune: Tune,
    /// Where results are kept.
    pub(crate) folder: Option<&'a Path>,
    /// Whether activations that are 8-bit integers by rule may stay floats.
    pub(crate) may_float: bool,
    /// The longest that it takes; what is compiled then is finished.
    pub(crate) budget: Duration,
}

impl TuneOptions<'_> {
    /// With what compiles at the end of it this is less than two seconds.
    pub(crate) const BUDGET: Duration = Duration::from_millis(1500);
}

/// What tuning came to.
pub(in crate::device::wgpu) struct Tuned {
    pub(in crate::device::wgpu) tuning: Tuning,
    /// Whether activations that are 8-bit integers by rule stay floats.
    pub(in crate::device::wgpu) is_float: bool,
    pub(in crate::device::wgpu) report: TuningReport,
}

/// `None` where nothing is to be changed.
///
/// # Errors
/// [`Gpu`](crate::Error::Gpu) where the device failed.
pub(in crate::device::wgpu) fn tune(
    shared: &Shared,
    plan: &Plan,
    kv: &KvLayout,
    options: &TuneOptions<'_>,
) -> Result<Option<Tuned>> {
    if options.tune == Tune::Off {
        return Ok(None);
    }
    let info = &shared.context.info;
    let file = options.folder.map(|folder| TuningFile::new(folder, info));
    let mut tuning = file.as_ref().map(TuningFile::read).unwrap_or_default();
    let key = model_key(shared, plan, kv, options.may_float);
    let again = options.tune == Tune::Again;
    let may_measure = again || file.is_some() && info.kind != DeviceKind::SoftwareGpu;
    let mut time = Duration::ZERO;
    if again || may_measure && tuning.has_rest(&key) {
        let started = Instant::now();
        let how = Options {
            deadline: started + options.budget,
            again,
            may_float: options.may_float,
        };
        let before = tuning.models.get(&key).filter(|_| !again).cloned();
        let kept = tuning.clone();
        let model = measure(shared, plan, kv, &mut tuning, &how);
        shared.rope_tables().clear();
        time = started.elapsed();
        let mut model = match model {
            Ok(model) => model,
            Err(error) => {
                shared.context.check()?;
                log::warn!("not tuned: {error}");
                // What earlier starts found still holds.
                tuning = kept;
                before.clone().unwrap_or_default()
            }
        };
        model.n_starts = 1 + before.map_or(0, |before| before.n_starts);
        tuning.models.insert(key.clone(), model);
        if let Some(file) = &file {
            file.write(&tuning);
        }
        log::info!("tuned in {:.2} s", time.as_secs_f64());
    }
    let Some(model) = tuning.models.get(&key) else {
        return Ok(None);
    };
    let names = model.subjects.iter();
    let entries = names.filter_map(|name| Some((name.as_str(), tuning.entries.get(name)?)));
    let of_rounding = model
        .int8
        .iter()
        .map(|entry| ("activations of few rows", entry));
    let report = TuningReport {
        time,
        choices: entries.chain(of_rounding).map(choice).collect(),
    };
    let int8 = model.int8.as_ref().map(|entry| entry.chosen);
    let is_float = options.may_float && int8 == Some(Setting::Int8(false));
    Ok(Some(Tuned {
        tuning,
        is_float,
        report,
    }))
}

fn choice((name, entry): (&str, &Entry)) -> TuningChoice {
    let trials = entry.trials.iter().map(|trial| TuningTrial {
        choice: trial.setting.to_string(),
        time: Duration::from_nanos(trial.nanoseconds),
    });
    TuningChoice {
        what: name.to_owned(),
        rule: entry.rule.to_string(),
        chosen: entry.chosen.to_string(),
        is_complete: entry.is_complete,
        trials: trials.collect(),
    }
}

/// What all depends on that a model asks for.
fn model_key(shared: &Shared, plan: &Plan, kv: &KvLayout, may_float: bool) -> String {
    let mut hasher = DefaultHasher::new();
    for (_, weight) in shared.weights.source().iter() {
        (weight.ty, weight.n_rows, weight.n_cols).hash(&mut hasher);
    }
    let allowed = shared.context.allowed;
    format!(
        "{:?} {:?} {:?} {:?} {:?} {allowed:?} {may_float}",
        plan.steps, plan.buffers, plan.max_rows, kv.layers, kv.ty
    )
    .hash(&mut hasher);
    format!("{:?}", shared.rounding).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
