//! The fast CPU device: SIMD kernels on the packed weights, spread over a pool of threads.
//!
//! Activations stay `f32` and weights are decoded inside the kernels, so that the only difference
//! from the reference is the order of sums. Threads share out whole outputs and never parts of one
//! sum: the results are the same for any number of threads.

mod attention;
mod cache;
mod elementwise;
mod executor;
mod experts;
mod heads;
mod matmul;
mod recurrent;
mod simd;
#[cfg(test)]
mod tests;
mod weights;

use super::memory::{Charge, Ledger, MemoryReport, Purpose};
use super::{Backend, DeviceInfo, DeviceKind, Executor, Held};
use crate::error::{Error, Result};
use crate::kv_cache::KvLayout;
use crate::model::{WeightId, Weights};
use crate::plan::Plan;
use executor::CpuExecutor;
use rayon::{ThreadPool, ThreadPoolBuilder};
use simd::Simd;
use std::num::NonZero;
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use weights::CpuWeights;

/// What all sessions on the CPU share.
struct Shared {
    weights: CpuWeights,
    ledger: Arc<Ledger>,
    /// Of what is held of the weights beside the file.
    _charge: Charge,
    simd: Simd,
    pool: ThreadPool,
}

/// A model's weights on the CPU: those in the file's type stay in the mapped file.
pub(crate) struct CpuBackend {
    shared: Arc<Shared>,
    info: DeviceInfo,
}

impl CpuBackend {
    /// Makes the weights ready for `n_threads` threads, or one for each core. `progress` is told the
    /// bytes that are ready and the bytes of all weights.
    ///
    /// # Errors
    /// `InvalidArgument` where there can not be so many threads, `OutOfMemory` where converted weights
    /// do not fit.
    pub(crate) fn new(
        weights: Weights,
        n_threads: Option<usize>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<CpuBackend> {
        let available = || thread::available_parallelism().map_or(1, NonZero::get);
        let n_threads = n_threads.unwrap_or_else(available);
        let invalid = |message| Error::InvalidArgument {
            name: "threads",
            message,
        };
        if n_threads == 0 {
            return Err(invalid("0, expected at least 1".to_owned()));
        }
        let pool = ThreadPoolBuilder::new()
            .num_threads(n_threads)
            .thread_name(|index| format!("trueshot-cpu-{index}"))
            .build()
            .map_err(|error| invalid(format!("{n_threads}: {error}")))?;
        let simd = Simd::detect();
        let info = DeviceInfo {
            name: simd.name().to_owned(),
            kind: DeviceKind::Cpu,
            backend: "cpu".to_owned(),
            driver: String::new(),
            n_threads,
        };
        let weights = CpuWeights::new(weights, &pool, available_memory_bytes(), progress)?;
        let ledger = Arc::<Ledger>::default();
        Ok(CpuBackend {
            shared: Arc::new(Shared {
                _charge: ledger.charge(Purpose::Weights, weights.held_bytes()),
                ledger,
                weights,
                simd,
                pool,
            }),
            info,
        })
    }
}

impl Backend for CpuBackend {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn preferred_rows(&self) -> usize {
        128
    }

    fn cache_budget_bytes(&self) -> Option<u64> {
        available_memory_bytes()
    }

    fn compare_weight(&self, id: WeightId, runs: &[Range<usize>]) -> Result<Held> {
        let Shared { weights, pool, .. } = &*self.shared;
        Ok(pool.install(|| weights.compare(id, runs)))
    }

    fn memory(&self) -> Result<MemoryReport> {
        Ok(self.shared.ledger.report())
    }

    fn executor(&self, plan: &Arc<Plan>, kv: &KvLayout) -> Result<Box<dyn Executor>> {
        Ok(Box::new(CpuExecutor::new(
            self.shared.clone(),
            plan.clone(),
            kv,
        )))
    }
}

/// Bytes of memory that new allocations can have without swapping; `None` where it is not known.
pub(crate) fn available_memory_bytes() -> Option<u64> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}
