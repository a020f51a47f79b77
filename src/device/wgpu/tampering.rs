//! Damage done on purpose, for tests that want it found: bytes on the device, the text of kernels, work left out.

use super::context::Context;
use super::executor::GpuExecutor;
use super::weights::GpuWeights;
use crate::kernels::row_stride;
use crate::model::WeightId;
use crate::plan::Batch;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

type OfWeights = Box<dyn Fn(&Context, &GpuWeights) + Send + Sync>;
type OfExecutor = Box<dyn Fn(&mut GpuExecutor) + Send + Sync>;
type OfBatch = Box<dyn Fn(&GpuExecutor, &Batch<'_>) + Send + Sync>;

#[derive(Default)]
pub(crate) struct Tampering {
    edit: Option<Edit>,
    weights: Option<OfWeights>,
    executor: Option<OfExecutor>,
    batch: Option<OfBatch>,
}

/// In a kernel, one text for another.
struct Edit {
    kernel: &'static str,
    from: &'static str,
    to: &'static str,
    was_made: AtomicBool,
    /// Whether the kernel was compiled at all.
    was_asked: AtomicBool,
}

impl fmt::Debug for Tampering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tampering").finish_non_exhaustive()
    }
}

impl Tampering {
    /// Replaces a text in every variant of a kernel that has it, all of it that is included too.
    pub(crate) fn wgsl(kernel: &'static str, from: &'static str, to: &'static str) -> Tampering {
        Tampering {
            edit: Some(Edit {
                kernel,
                from,
                to,
                was_made: AtomicBool::new(false),
                was_asked: AtomicBool::new(false),
            }),
            ..Default::default()
        }
    }

    /// The same where the kernel may not have the text, as it depends on the GPU's features.
    pub(crate) fn wgsl_of_feature(
        kernel: &'static str,
        from: &'static str,
        to: &'static str,
    ) -> Tampering {
        let tampering = Tampering::wgsl(kernel, from, to);
        if let Some(edit) = &tampering.edit {
            edit.was_made.store(true, Ordering::Relaxed);
        }
        tampering
    }

    fn weights(damage: impl Fn(&Context, &GpuWeights) + Send + Sync + 'static) -> Tampering {
        Tampering {
            weights: Some(Box::new(damage)),
            ..Default::default()
        }
    }

    fn executor(damage: impl Fn(&mut GpuExecutor) + Send + Sync + 'static) -> Tampering {
        Tampering {
            executor: Some(Box::new(damage)),
            ..Default::default()
        }
    }

    /// Done whenever a batch is about to run.
    fn batch(damage: impl Fn(&GpuExecutor, &Batch<'_>) + Send + Sync + 'static) -> Tampering {
        Tampering {
            batch: Some(Box::new(damage)),
            ..Default::default()
        }
    }

    /// A weight of zeros on the device, as an allocation that failed unseen leaves it.
    pub(crate) fn zeroed(weight: &'static str) -> Tampering {
        Tampering::weights(move |context, weights| {
            let words = read(context, weights, find(weights, weight));
            write(
                context,
                weights,
                find(weights, weight),
                &vec![0; words.len()],
            );
        })
    }

    /// A row of a matrix in planes of 8-bit integers and of scales, as zeros on the device.
    pub(crate) fn zeroed_row(weight: &'static str, row: usize) -> Tampering {
        Tampering::weights(move |context, weights| {
            let id = find(weights, weight);
            let mut words = read(context, weights, id);
            let row_words = row_stride(weights.get(id).n_cols) / 4;
            words[row * row_words..][..row_words].fill(0);
            write(context, weights, id, &words);
        })
    }

    /// Two weights of one shape, each in the place of the other.
    pub(crate) fn swapped(first: &'static str, second: &'static str) -> Tampering {
        Tampering::weights(move |context, weights| {
            let ids = [first, second].map(|name| find(weights, name));
            let [of_first, of_second] = ids.map(|id| read(context, weights, id));
            write(context, weights, ids[0], &of_second);
            write(context, weights, ids[1], &of_first);
        })
    }

    /// Leaves out whatever writes the result of a step.
    pub(crate) fn skipped(step: &'static str) -> Tampering {
        Tampering::executor(move |executor| {
            let index = executor.step_named(step);
            for dispatches in &mut executor.lowered.steps {
                dispatches.retain(|dispatch| !dispatch.writes.contains(&index));
            }
        })
    }

    /// Each session leaves a buffer behind.
    pub(crate) fn kept_buffers() -> Tampering {
        Tampering::executor(|executor| std::mem::forget(executor.buffers.tokens.clone()))
    }

    /// The angles of every position are those of another.
    pub(crate) fn turned_positions() -> Tampering {
        Tampering::executor(|executor| {
            let queue = &executor.shared.context.queue;
            for stored in executor.shared.rope_tables.lock().unwrap().iter() {
                let positions = 1..=stored.capacity;
                let angles: Vec<[f32; 2]> = positions.flat_map(|p| stored.table.row(p)).collect();
                queue.write_buffer(&stored.buffer, 0, bytemuck::cast_slice(&angles));
            }
            queue.submit([]);
        })
    }

    /// Ones in the cache of a layer at position 0, whenever a single token is about to run.
    pub(crate) fn poisoned_cache(layer: usize) -> Tampering {
        Tampering::batch(move |executor, batch| {
            if batch.n_rows() == 1 && batch.position > 0 {
                let row = executor.kv.layers[layer].key_width() * executor.kv.ty.bytes();
                let keys = &executor.buffers.caches[layer][0];
                executor
                    .shared
                    .context
                    .queue
                    .write_buffer(keys, 0, &vec![0x3C; row]);
            }
        })
    }

    /// Ones in a state, whenever a single token is about to run.
    pub(crate) fn poisoned_state(state: usize) -> Tampering {
        Tampering::batch(move |executor, batch| {
            if batch.n_rows() == 1 && batch.position > 0 {
                let state = &executor.buffers.states[state];
                let ones = vec![1.0f32; state.size() as usize / 4];
                let queue = &executor.shared.context.queue;
                queue.write_buffer(state, 0, bytemuck::cast_slice(&ones));
            }
        })
    }

    /// The device is lost when the first token behind a prompt is about to run.
    pub(crate) fn lost_device() -> Tampering {
        Tampering::batch(|executor, batch| {
            if batch.position > 0 {
                executor.shared.context.device.destroy();
            }
        })
    }

    pub(super) fn source(&self, kernel: &str, mut source: String) -> String {
        if let Some(edit) = &self.edit
            && kernel == edit.kernel
        {
            edit.was_asked.store(true, Ordering::Relaxed);
            if source.contains(edit.from) {
                source = source.replace(edit.from, edit.to);
                edit.was_made.store(true, Ordering::Relaxed);
            }
        }
        source
    }

    pub(super) fn damage_weights(&self, context: &Context, weights: &GpuWeights) {
        if let Some(damage) = &self.weights {
            damage(context, weights);
            context.queue.submit([]);
        }
    }

    pub(super) fn damage_executor(&self, executor: &mut GpuExecutor) {
        if let Some(damage) = &self.executor {
            damage(executor);
        }
    }

    pub(super) fn damage_batch(&self, executor: &GpuExecutor, batch: &Batch<'_>) {
        if let Some(damage) = &self.batch {
            damage(executor, batch);
        }
    }
}

impl Context {
    /// The same with damage.
    pub(crate) fn tampered(mut self, tampering: Tampering) -> Context {
        self.tampering = tampering;
        self
    }
}

impl Drop for Edit {
    fn drop(&mut self) {
        let is_idle = *self.was_asked.get_mut() && !*self.was_made.get_mut();
        assert!(
            !is_idle || std::thread::panicking(),
            "kernel `{}` has no text `{}`",
            self.kernel,
            self.from
        );
    }
}

fn find(weights: &GpuWeights, name: &str) -> WeightId {
    let found = weights.iter().find(|(_, weight)| weight.name == name);
    found.unwrap_or_else(|| panic!("no weight `{name}`")).0
}

fn read(context: &Context, weights: &GpuWeights, id: WeightId) -> Vec<u32> {
    let [shard] = weights.shards(id) else {
        panic!("a weight in several shards");
    };
    let bytes = shard.shard.words() as u64 * 4;
    let bytes = context.read_buffer(&shard.buffer, shard.offset, bytes);
    bytemuck::pod_collect_to_vec(&bytes.unwrap())
}

fn write(context: &Context, weights: &GpuWeights, id: WeightId, words: &[u32]) {
    let shard = &weights.shards(id)[0];
    let words = bytemuck::cast_slice(words);
    context
        .queue
        .write_buffer(&shard.buffer, shard.offset, words);
}
