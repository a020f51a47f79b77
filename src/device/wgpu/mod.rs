//! The GPU device: adapters, weights, and plans lowered to dispatches. The only place that names `wgpu::`.

mod adapter;
mod buffer;
mod chain;
mod compare;
pub(crate) mod context;
mod executor;
mod kept_pipelines;
mod lower;
mod mapping;
pub mod measure;
mod pipelines;
mod select;
mod sentinels;
#[cfg(test)]
pub(crate) mod tampering;
#[cfg(test)]
pub(crate) mod testing;
mod timestamps;
mod tune;
mod upload;
mod weights;

pub use adapter::GpuFeatures;
pub(crate) use adapter::adapters;
pub(crate) use context::Context as Gpu;
pub(crate) use tune::TuneOptions;

use self::buffer::Buffer;
use self::context::Context;
use self::executor::GpuExecutor;
use self::tune::Tuning;
use self::weights::GpuWeights;
use super::memory::{MemoryReport, Purpose};
use super::{Activations, Backend, DeviceInfo, Executor, Held, Rounding, TuningReport};
use crate::error::Result;
use crate::kv_cache::KvLayout;
use crate::model::{WeightId, Weights};
use crate::plan::{Plan, RopeTable};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Tokens of a prefill batch.
const PREFILL_ROWS: usize = 512;

/// A model's weights on a GPU.
pub(crate) struct GpuBackend {
    shared: Arc<Shared>,
    tuning: Option<TuningReport>,
}

/// What the executors of one model have in common.
pub(super) struct Shared {
    context: Context,
    rounding: Rounding,
    weights: GpuWeights,
    rope_tables: Mutex<Vec<StoredTable>>,
    /// What was found to be fastest.
    tuning: Arc<Tuning>,
}

/// A rope table on the GPU, for positions below `capacity`.
struct StoredTable {
    table: RopeTable,
    capacity: usize,
    buffer: Buffer,
}

impl GpuBackend {
    /// Uploads the weights to an opened GPU; `progress` is told the bytes done and the bytes of all.
    ///
    /// # Errors
    /// [`OutOfMemory`](crate::Error::OutOfMemory) or [`Gpu`](crate::Error::Gpu).
    pub(crate) fn new(
        weights: Weights,
        context: Context,
        activations: Activations,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let rounding = select::rounding(activations, &context);
        let weights = GpuWeights::upload(&context, weights, progress)?;
        #[cfg(test)]
        context.tampering.damage_weights(&context, &weights);
        let rope_tables = Mutex::default();
        Ok(GpuBackend {
            shared: Arc::new(Shared {
                context,
                rounding,
                weights,
                rope_tables,
                tuning: Arc::default(),
            }),
            tuning: None,
        })
    }

    /// Finds what is fastest for a plan without 8-bit activations, or reads what was found before, as `options` say.
    /// Executors made from now on go by it. What cannot be measured stays as it is by rule.
    ///
    /// # Errors
    /// [`Gpu`](crate::Error::Gpu) where the device failed.
    pub(crate) fn tune(
        &mut self,
        plan: &Plan,
        kv: &KvLayout,
        options: &TuneOptions<'_>,
    ) -> Result<()> {
        // Executors share what would change.
        let Some(shared) = Arc::get_mut(&mut self.shared) else {
            return Ok(());
        };
        if let Some(tuned) = tune::tune(shared, plan, kv, options)? {
            shared.tuning = Arc::new(tuned.tuning);
            if tuned.is_float {
                shared.rounding.int8_rows = 0;
            }
            self.tuning = Some(tuned.report);
        }
        Ok(())
    }
}

impl Backend for GpuBackend {
    fn info(&self) -> &DeviceInfo {
        &self.shared.context.info
    }

    fn rounding(&self) -> Rounding {
        self.shared.rounding
    }

    fn tuning(&self) -> Option<&TuningReport> {
        self.tuning.as_ref()
    }

    fn preferred_rows(&self) -> usize {
        PREFILL_ROWS
    }

    fn cache_budget_bytes(&self) -> Option<u64> {
        None
    }

    fn compare_weight(&self, id: WeightId, runs: &[Range<usize>]) -> Result<Held> {
        let Shared {
            context, weights, ..
        } = &*self.shared;
        compare::compare_weight(context, weights, id, runs)
    }

    fn compare_rope_tables(&self) -> Result<Held> {
        let Shared { context, .. } = &*self.shared;
        compare::compare_tables(context, &self.shared.rope_tables())
    }

    fn memory(&self) -> Result<MemoryReport> {
        self.shared.context.memory()
    }

    fn executor(&self, plan: &Arc<Plan>, kv: &KvLayout) -> Result<Box<dyn Executor>> {
        let executor = GpuExecutor::new(self.shared.clone(), plan.clone(), kv)?;
        self.shared.context.save_pipelines();
        Ok(Box::new(executor))
    }
}

impl Shared {
    fn rope_tables(&self) -> MutexGuard<'_, Vec<StoredTable>> {
        let tables = self.rope_tables.lock();
        tables.unwrap_or_else(PoisonError::into_inner)
    }

    /// Cosines and sines of every position below `capacity`: `[capacity, n_dims / 2, 2] f32`.
    fn rope_table(&self, table: &RopeTable, capacity: usize) -> Result<Buffer> {
        let mut stored = self.rope_tables();
        if let Some(found) = stored
            .iter()
            .find(|s| s.table == *table && s.capacity >= capacity)
        {
            return Ok(found.buffer.clone());
        }
        let row_bytes = table.n_dims() as u64 * 4;
        use ::wgpu::BufferUsages as Usages;
        let usage = Usages::STORAGE | Usages::COPY_DST | Usages::COPY_SRC;
        let bytes = capacity as u64 * row_bytes;
        if bytes > self.context.max_binding_bytes() {
            let what = format!("a rope table of {capacity} positions");
            return Err(self.context.out_of_memory(what, bytes));
        }
        let label = format!("rope_table {}", stored.len());
        let buffer = self
            .context
            .create_buffer(Purpose::Scratch, &label, bytes, usage)?;
        self.context.scoped("upload of a rope table", || {
            const POSITIONS: usize = 4096;
            for first in (0..capacity).step_by(POSITIONS) {
                let rows = first..capacity.min(first + POSITIONS);
                let values: Vec<[f32; 2]> = rows.flat_map(|position| table.row(position)).collect();
                let offset = first as u64 * row_bytes;
                self.context
                    .queue
                    .write_buffer(&buffer, offset, bytemuck::cast_slice(&values));
            }
        })?;
        let entry = StoredTable {
            table: table.clone(),
            capacity,
            buffer: buffer.clone(),
        };
        stored.push(entry);
        Ok(buffer)
    }
}
