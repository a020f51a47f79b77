//! How long dispatches take, by the GPU's own clock.

use super::context::{Context, named};
use super::lower::Dispatch;
use crate::device::Clock;
use crate::device::memory::Purpose;
use crate::error::{Error, Result};
use std::time::{Duration, Instant};

/// The best clock of a GPU.
///
/// # Errors
/// [`Error::Unsupported`] where it has none.
pub(super) fn clock(context: &Context) -> Result<Clock> {
    clock_of(context.features).ok_or_else(|| Error::Unsupported {
        kind: "profile on",
        name: context.info.name.clone(),
        supported: "the CPU, and GPUs with timestamp queries".to_owned(),
    })
}

fn clock_of(features: wgpu::Features) -> Option<Clock> {
    if features.contains(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES) {
        Some(Clock::Dispatches)
    } else if features.contains(wgpu::Features::TIMESTAMP_QUERY) {
        Some(Clock::Passes)
    } else {
        None
    }
}

/// A dispatch of a batch, with its grid.
pub(super) type Sized<'a> = (&'a Dispatch, [u32; 3]);

/// Runs dispatches in one pass and says how long they took together.
pub(super) fn time_all(context: &Context, dispatches: &[Sized<'_>]) -> Result<Duration> {
    let ticks = run(context, 2, |encoder, queries| {
        passes(encoder, queries, &[dispatches])
    })?;
    Ok(time(context, ticks[0], ticks[1]))
}

/// As [`time_all`] by the host's clock, with what a submission takes.
pub(super) fn time_by_host(context: &Context, dispatches: &[Sized<'_>]) -> Result<Duration> {
    let mut encoder = context.encoder("times by the host");
    let mut pass = encoder.begin_compute_pass(&named("times by the host"));
    for (dispatch, grid) in dispatches {
        dispatch.record(&mut pass, *grid);
    }
    drop(pass);
    let commands = encoder.finish();
    context.wait()?;
    let started = Instant::now();
    context.scoped("times by the host", || context.queue.submit([commands]))?;
    context.wait()?;
    Ok(started.elapsed())
}

/// Runs dispatches in order and says how long each took, with what reading the clock takes.
pub(super) fn time_each(
    context: &Context,
    clock: Clock,
    dispatches: &[Sized<'_>],
) -> Result<Vec<Duration>> {
    const MOST: usize = wgpu::QUERY_SET_MAX_QUERIES as usize / 2;
    let mut times = Vec::with_capacity(dispatches.len());
    for dispatches in dispatches.chunks(MOST) {
        let n = dispatches.len();
        if clock == Clock::Passes {
            let groups: Vec<_> = dispatches.chunks(1).collect();
            let ticks = run(context, 2 * n, |encoder, queries| {
                passes(encoder, queries, &groups)
            })?;
            times.extend(
                ticks
                    .chunks_exact(2)
                    .map(|ends| time(context, ends[0], ends[1])),
            );
        } else {
            let ticks = run(context, n + 1, |encoder, queries| {
                let mut pass = encoder.begin_compute_pass(&named("timestamps"));
                pass.write_timestamp(queries, 0);
                for (index, (dispatch, grid)) in (1..).zip(dispatches) {
                    dispatch.record(&mut pass, *grid);
                    pass.write_timestamp(queries, index);
                }
            })?;
            times.extend(ticks.windows(2).map(|ends| time(context, ends[0], ends[1])));
        }
    }
    Ok(times)
}

/// Records groups of dispatches, each a pass with timestamps at both ends.
fn passes(encoder: &mut wgpu::CommandEncoder, queries: &wgpu::QuerySet, groups: &[&[Sized<'_>]]) {
    for (first, group) in (0..).step_by(2).zip(groups) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("timestamps"),
            timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                query_set: queries,
                beginning_of_pass_write_index: Some(first),
                end_of_pass_write_index: Some(first + 1),
            }),
        });
        for (dispatch, grid) in *group {
            dispatch.record(&mut pass, *grid);
        }
    }
}

/// Submits what `record` records, and gives the timestamps it wrote.
fn run(
    context: &Context,
    count: usize,
    record: impl FnOnce(&mut wgpu::CommandEncoder, &wgpu::QuerySet),
) -> Result<Vec<u64>> {
    let bytes = count as u64 * 8;
    let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
    let resolved = context.create_buffer(Purpose::Scratch, "timestamps", bytes, usage)?;
    context.scoped("timestamps", || {
        let queries = context.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("timestamps"),
            ty: wgpu::QueryType::Timestamp,
            count: count as u32,
        });
        let mut encoder = context.encoder("timestamps");
        record(&mut encoder, &queries);
        encoder.resolve_query_set(&queries, 0..count as u32, &resolved, 0);
        context.queue.submit([encoder.finish()]);
    })?;
    let bytes = context.read_buffer(&resolved, 0, bytes)?;
    Ok(bytemuck::pod_collect_to_vec(&bytes))
}

fn time(context: &Context, start: u64, end: u64) -> Duration {
    let nanoseconds = f64::from(context.queue.get_timestamp_period());
    Duration::from_nanos((end.saturating_sub(start) as f64 * nanoseconds) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::wgpu::select::Rows;
    use crate::device::wgpu::testing::gpu;
    use crate::kernels::{BatchParams, Variant, add};
    use crate::plan::Extent;
    use wgpu::BufferUsages as Usage;

    #[test]
    fn clock_is_the_finest_that_there_is() {
        use wgpu::Features as F;
        assert_eq!(clock_of(F::empty()), None);
        assert_eq!(clock_of(F::TIMESTAMP_QUERY), Some(Clock::Passes));
        let both = F::TIMESTAMP_QUERY | F::TIMESTAMP_QUERY_INSIDE_PASSES;
        assert_eq!(clock_of(both), Some(Clock::Dispatches));
    }

    /// A sum of `width` elements, as a dispatch.
    fn dispatch(context: &Context, width: usize) -> Dispatch {
        let variant = Variant::PLAIN;
        let params = add::Params::new(width);
        let batch = BatchParams {
            n_rows: 1,
            position: 0,
            n_outputs: 1,
            random: 0,
        };
        let buffer = |label: &str, contents: &[u8], bytes: usize, usage: Usage| {
            let buffer = context.create_buffer(
                Purpose::Scratch,
                label,
                bytes as u64,
                usage | Usage::COPY_DST,
            );
            let buffer = buffer.unwrap();
            context.queue.write_buffer(&buffer, 0, contents);
            buffer
        };
        let storage = |label| buffer(label, &[], width * 4, Usage::STORAGE);
        let buffers = [
            buffer("batch", bytemuck::bytes_of(&batch), 16, Usage::UNIFORM),
            buffer("params", bytemuck::bytes_of(&params), 16, Usage::UNIFORM),
            storage("a"),
            storage("b"),
            storage("dst"),
        ];
        let pipeline = context.pipeline(&add::KERNEL, &variant).unwrap();
        let bindings: Vec<_> = buffers
            .iter()
            .map(|b| b.as_entire_buffer_binding())
            .collect();
        let bind_group = context.bind_group("add", &pipeline, &bindings).unwrap();
        Dispatch {
            step: 0,
            writes: vec![0],
            is_sentinel: false,
            kernel: &add::KERNEL,
            rows: Rows::ANY,
            visible: 0..=usize::MAX,
            extent: Extent::Tokens,
            pipeline,
            bind_group,
            grid: Box::new(move |n_rows| add::grid(&params, n_rows)),
        }
    }

    #[test]
    fn a_large_dispatch_takes_longer_than_a_small_one_by_either_clock() {
        let Some(context) = gpu() else { return };
        let Ok(best) = clock(context) else { return };
        let [small, large] = [32, 1 << 22].map(|width| dispatch(context, width));
        let dispatches = [&small, &large, &small, &large].map(|d| (d, (d.grid)(1)));
        for clock in [Clock::Passes, best] {
            time_all(context, &dispatches).unwrap();
            let times = time_each(context, clock, &dispatches).unwrap();
            assert_eq!(times.len(), 4);
            let (small, large) = (times[0] + times[2], times[1] + times[3]);
            assert!(small < large, "{clock:?}: {times:?}");
        }
    }
}
