//! The speed of single products and of the memory, for `benches/kernels.rs` and `examples/profile.rs`.

mod stream;

use super::adapter::GpuFeatures;
use super::buffer::Buffer;
use super::context::{Context, named};
use super::select::{self, Choice, FEW_ROWS};
use crate::device::memory::Purpose;
use crate::device::{Activations, DeviceInfo, GpuChoice, Rounding};
use crate::error::Result;
use crate::gguf::WeightType;
use crate::kernels::repack::{Matrix, Shard};
use crate::kernels::teams::{FewRows, Of, Teams};
use crate::kernels::{BatchParams, Kernel, Src, Variant, matmul, matmul_coop, matvec, row_stride};
use crate::kv_cache::KvType;
use std::time::{Duration, Instant};
use wgpu::BufferUsages as Usages;

/// `[n_rows, n_cols]` activations times `[n_out, n_cols]` weights.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// Type of the weights.
    pub weight: WeightType,
    /// Rows of activations.
    pub n_rows: usize,
    /// Rows of weights.
    pub n_out: usize,
    /// Columns of both.
    pub n_cols: usize,
}

/// How long one kernel takes for a product.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// The kernel, and its tile where it has several.
    pub kernel: String,
    /// One dispatch in a row of dependent ones.
    pub time: Duration,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Whether a session with [`Activations::Auto`] that is not tuned runs the product by this kernel.
    pub is_chosen: bool,
}

/// A GPU to measure.
#[derive(Debug)]
pub struct Bench {
    context: Context,
    rounding: Rounding,
    choice: Choice,
}

/// A dispatch to time.
struct Timed<'a> {
    kernel: &'static Kernel,
    variant: Variant,
    n_rows: usize,
    params: &'a [u8],
    /// The bindings of dispatches that follow each other.
    storages: Vec<Vec<&'a Buffer>>,
    grid: [u32; 3],
}

/// Weights that lie in different buffers, in all, so that they come from memory and not from a cache.
const ROTATED_BYTES: u64 = 512 << 20;
/// Dispatches of one submission run for about this long.
const RUN: Duration = Duration::from_millis(50);
const REPEATS: usize = 3;

/// The bindings of a product for each of its weights. Where nothing is added any buffer does for it.
fn storages<'a>(
    weights: &'a [Buffer],
    inputs: &[&'a Buffer],
    dst: &'a Buffer,
) -> Vec<Vec<&'a Buffer>> {
    let storage = |weights| [&[weights], inputs, &[weights, weights, dst, dst]].concat();
    weights.iter().map(storage).collect()
}

impl Bench {
    /// Opens a GPU with all that it has.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(choice: &GpuChoice) -> Result<Bench> {
        let context = Context::new(choice, GpuFeatures::default())?;
        let rounding = select::rounding(Activations::Auto, &context);
        let choice = Choice::new(&context, rounding, KvType::F16);
        Ok(Bench {
            context,
            rounding,
            choice,
        })
    }

    /// The GPU.
    pub fn info(&self) -> &DeviceInfo {
        &self.context.info
    }

    /// Every kernel that can compute the product: few rows by `matvec`, with all teams that there are.
    ///
    /// # Errors
    /// Those of the device.
    pub fn product(&self, product: &Product) -> Result<Vec<Measurement>> {
        let &Product {
            weight,
            n_rows,
            n_out,
            n_cols,
        } = product;
        let shard = Shard {
            ty: weight,
            first_row: 0,
            n_rows: n_out,
            n_cols,
        };
        let weight_bytes = shard.words() as u64 * 4;
        let n_buffers = ROTATED_BYTES.div_ceil(weight_bytes).clamp(2, 64);
        let weights = (0..n_buffers)
            .map(|_| self.buffer("weights", weight_bytes))
            .collect::<Result<Vec<_>>>()?;
        let bytes = |width: usize| (n_rows * row_stride(width) * 4) as u64;
        let src = self.buffer("src", bytes(n_cols))?;
        let dst = self.buffer("dst", bytes(n_out))?;
        let halves = self.buffer("f16_rows", bytes(n_cols) / 2)?;
        let scales = self.buffer("scales", n_rows as u64 * 4)?;

        let params = matmul::Params {
            matrix: shard.matrix(),
            src_stride: row_stride(n_cols) as u32,
            dst_stride: row_stride(n_out) as u32,
            extent: 0,
            has_bias: 0,
            has_residual: 0,
            padding: [0; 3],
        };
        let variant = Variant {
            weight,
            ..self.choice.plain()
        };
        let found = |kernel: String, is_chosen, time| Measurement {
            kernel,
            time,
            weight_bytes,
            is_chosen,
        };
        if n_rows <= FEW_ROWS {
            let takes_int8 = weight.is_quantised();
            let chosen = match takes_int8 && self.rounding.int8_rows >= n_rows {
                true => Src::Int8,
                false => Src::F32,
            };
            // Int8 activations are any numbers too.
            let sources = [Src::F32, Src::Int8].into_iter();
            let few_rows = |src| FewRows {
                of: Of::Matvec,
                weight,
                src,
                n_out,
                units_per_row: params.matrix.units_per_row as usize,
            };
            let of = |(of_src, teams): (Src, Teams)| {
                let params = matvec::Params {
                    matrix: Matrix {
                        team_size: teams.size,
                        ..params.matrix
                    },
                    src_stride: params.src_stride,
                    dst_stride: params.dst_stride,
                    n_pairs: teams.n_pairs(),
                    has_bias: 0,
                    has_residual: 0,
                    padding: [0; 3],
                };
                let bytes = bytemuck::bytes_of(&params);
                let time = self.time(&Timed {
                    kernel: &matvec::KERNEL,
                    variant: teams.put_into(Variant {
                        src: of_src,
                        constants: self.choice.constants(bytes),
                        ..variant
                    }),
                    n_rows,
                    params: bytes,
                    storages: storages(&weights, &[&src], &dst),
                    grid: matvec::grid(&params, n_rows),
                })?;
                let is_chosen = of_src == chosen && teams == few_rows(of_src).rule();
                Ok(found(format!("matvec {of_src:?} {teams}"), is_chosen, time))
            };
            return sources
                .filter(|s| takes_int8 || *s == Src::F32)
                .flat_map(|of_src| few_rows(of_src).all().map(move |teams| (of_src, teams)))
                .map(of)
                .collect();
        }
        let units_per_row = params.matrix.units_per_row as usize;
        let tiles = self.choice.tiles(weight, n_out, units_per_row);
        let chosen = tiles
            .iter()
            .find(|(rows, _)| rows.covers(n_rows))
            .map(|&(_, tile)| tile);
        let time = self.time(&Timed {
            kernel: &matmul::KERNEL,
            variant,
            n_rows,
            params: bytemuck::bytes_of(&params),
            storages: storages(&weights, &[&src], &dst),
            grid: matmul::grid(&params, n_rows),
        })?;
        let mut all = vec![found("matmul".to_owned(), chosen.is_none(), time)];
        for tile in self.choice.every_tile(units_per_row) {
            let time = self.time(&Timed {
                kernel: &matmul_coop::KERNEL,
                variant: Variant {
                    tile: Some(tile),
                    ..variant
                },
                n_rows,
                params: bytemuck::bytes_of(&params),
                storages: storages(&weights, &[&halves, &scales], &dst),
                grid: matmul_coop::grid(tile, &params, n_rows),
            })?;
            all.push(found(
                format!("matmul_coop {tile}"),
                chosen == Some(tile),
                time,
            ));
        }
        Ok(all)
    }

    /// A storage buffer of 16-bit floats between 0 and 2.
    fn buffer(&self, label: &str, bytes: u64) -> Result<Buffer> {
        let buffer = self.context.create_buffer(
            Purpose::Scratch,
            label,
            bytes,
            Usages::STORAGE | Usages::COPY_DST,
        )?;
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state & 0x3BFF_3BFF
        };
        let chunk: Vec<u32> = (0..(4 << 20).min(bytes / 4)).map(|_| next()).collect();
        for offset in (0..bytes).step_by(chunk.len() * 4) {
            let words = chunk.len().min((bytes - offset) as usize / 4);
            let words = bytemuck::cast_slice(&chunk[..words]);
            self.context.queue.write_buffer(&buffer, offset, words);
        }
        self.context.queue.submit([]);
        self.context.wait()?;
        Ok(buffer)
    }

    fn time(&self, timed: &Timed<'_>) -> Result<Duration> {
        let context = &self.context;
        let name = timed.kernel.name;
        let uniform = |label: &str, contents: &[u8]| {
            let usage = Usages::UNIFORM | Usages::COPY_DST;
            let buffer =
                context.create_buffer(Purpose::Scratch, label, contents.len() as u64, usage)?;
            context.queue.write_buffer(&buffer, 0, contents);
            Ok(buffer)
        };
        let batch = BatchParams {
            n_rows: timed.n_rows as u32,
            position: 0,
            n_outputs: 1,
            random: 0,
        };
        let batch = uniform("batch", bytemuck::bytes_of(&batch))?;
        let params = uniform("params", timed.params)?;
        let pipeline = context.pipeline(timed.kernel, &timed.variant)?;
        let bind_group = |storage: &Vec<&Buffer>| {
            let buffers = [&batch, &params].into_iter().chain(storage.iter().copied());
            let bindings: Vec<_> = buffers.map(|b| b.as_entire_buffer_binding()).collect();
            context.bind_group(name, &pipeline, &bindings)
        };
        let groups = timed
            .storages
            .iter()
            .map(bind_group)
            .collect::<Result<Vec<_>>>()?;
        let [x, y, z] = timed.grid;
        let run = |n_dispatches: usize| -> Result<Duration> {
            let mut encoder = context.encoder(name);
            let mut pass = encoder.begin_compute_pass(&named(name));
            pass.set_pipeline(&pipeline.compiled);
            for group in groups.iter().cycle().take(n_dispatches) {
                pass.set_bind_group(0, group, &[]);
                pass.dispatch_workgroups(x, y, z);
            }
            drop(pass);
            let commands = encoder.finish();
            let started = Instant::now();
            context.scoped(name, || context.queue.submit([commands]))?;
            context.wait()?;
            Ok(started.elapsed())
        };
        run(groups.len())?;
        let once = run(groups.len())?.as_secs_f64() / groups.len() as f64;
        let n_dispatches = (RUN.as_secs_f64() / once).clamp(4.0, 4000.0) as usize;
        let mut best = Duration::MAX;
        for _ in 0..REPEATS {
            best = best.min(run(n_dispatches)? / n_dispatches as u32);
        }
        Ok(best)
    }
}
