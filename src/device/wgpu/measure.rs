//! The speed of single products, for `benches/kernels.rs`.

use super::context::{Context, GpuFeatures};
use crate::device::{DeviceInfo, GpuChoice};
use crate::error::Result;
use crate::gguf::WeightType;
use crate::kernels::matmul_coop::Tile;
use crate::kernels::repack::Shard;
use crate::kernels::{
    BatchParams, Kernel, Variant, f16_rows, matmul, matmul_coop, matvec, matvec_int8, row_stride,
};
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
    pub kernel: &'static str,
    /// One dispatch in a row of dependent ones.
    pub time: Duration,
    /// Bytes of the weights.
    pub weight_bytes: u64,
}

/// A GPU to measure.
#[derive(Debug)]
pub struct Bench {
    context: Context,
}

/// Weights that lie in different buffers, in all, so that they come from memory and not from a cache.
const ROTATED_BYTES: u64 = 512 << 20;
/// Dispatches of one submission run for about this long.
const RUN: Duration = Duration::from_millis(50);
const REPEATS: usize = 3;

impl Bench {
    /// Opens a GPU with all that it has.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(choice: &GpuChoice) -> Result<Bench> {
        let context = Context::new(choice, GpuFeatures::default())?;
        Ok(Bench { context })
    }

    /// The GPU.
    pub fn info(&self) -> &DeviceInfo {
        &self.context.info
    }

    /// Every kernel that can compute the product: few rows by `matvec` and `matvec_int8`.
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
        let plain = |name, kernel: &'static Kernel, grid| {
            let storage = |weights| match kernel.uses.integers {
                // Quants and scales are any numbers too.
                true => vec![weights, &src, &src, weights, weights, &dst, &dst],
                false => vec![weights, &src, weights, weights, &dst, &dst],
            };
            let storages = weights.iter().map(storage).collect();
            self.time(
                name,
                kernel,
                product,
                None,
                &params,
                storages,
                grid,
                weight_bytes,
            )
        };
        if n_rows == 1 {
            let grid = matvec::grid(&params, 1);
            let mut found = vec![plain("matvec", &matvec::KERNEL, grid)?];
            if weight.block_len() > 1 {
                let grid = matvec_int8::grid(&params, 1);
                found.push(plain("matvec_int8", &matvec_int8::KERNEL, grid)?);
            }
            return Ok(found);
        }
        let mut found = vec![plain(
            "matmul",
            &matmul::KERNEL,
            matmul::grid(&params, n_rows),
        )?];
        if let Some(matrix) = self.context.cooperative_matrix {
            let room = self.context.limits.max_compute_workgroup_storage_size as usize;
            for (name, is_large) in [("matmul_coop small", false), ("matmul_coop large", true)] {
                let tile = Tile { matrix, is_large };
                if tile.workgroup_bytes() > room {
                    continue;
                }
                let storage =
                    |weights| vec![weights, &halves, &scales, weights, weights, &dst, &dst];
                found.push(self.time(
                    name,
                    &matmul_coop::KERNEL,
                    product,
                    Some(tile),
                    &params,
                    weights.iter().map(storage).collect(),
                    matmul_coop::grid(tile, &params, n_rows),
                    weight_bytes,
                )?);
            }
            let params = f16_rows::Params::new(n_cols, 0);
            found.push(self.time(
                "f16_rows",
                &f16_rows::KERNEL,
                product,
                None,
                &params,
                vec![vec![&src, &halves, &scales]],
                f16_rows::grid(&params, n_rows),
                bytes(n_cols),
            )?);
        }
        Ok(found)
    }

    /// A storage buffer of 16-bit floats between 0 and 2.
    fn buffer(&self, label: &str, bytes: u64) -> Result<wgpu::Buffer> {
        let buffer =
            self.context
                .create_buffer(label, bytes, Usages::STORAGE | Usages::COPY_DST)?;
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

    #[expect(clippy::too_many_arguments, reason = "a dispatch is as much")]
    fn time<P: bytemuck::Pod>(
        &self,
        name: &'static str,
        kernel: &Kernel,
        product: &Product,
        tile: Option<Tile>,
        params: &P,
        storages: Vec<Vec<&wgpu::Buffer>>,
        [x, y, z]: [u32; 3],
        weight_bytes: u64,
    ) -> Result<Measurement> {
        let context = &self.context;
        let uniform = |label: &str, contents: &[u8]| {
            let usage = Usages::UNIFORM | Usages::COPY_DST;
            let buffer = context.create_buffer(label, contents.len() as u64, usage)?;
            context.queue.write_buffer(&buffer, 0, contents);
            Ok(buffer)
        };
        let batch = BatchParams {
            n_rows: product.n_rows as u32,
            position: 0,
            n_outputs: 1,
            padding: 0,
        };
        let batch = uniform("batch", bytemuck::bytes_of(&batch))?;
        let params = uniform("params", bytemuck::bytes_of(params))?;
        let variant = Variant {
            weight: product.weight,
            kv: KvType::F32,
            subgroups: context.subgroups(),
            tile,
        };
        let pipeline = context.pipeline(kernel, &variant)?;
        let bind_group = |storage: &Vec<&wgpu::Buffer>| {
            let buffers = [&batch, &params].into_iter().chain(storage.iter().copied());
            let bindings: Vec<_> = buffers.map(|b| b.as_entire_buffer_binding()).collect();
            context.bind_group(name, &pipeline, &bindings)
        };
        let groups = storages
            .iter()
            .map(bind_group)
            .collect::<Result<Vec<_>>>()?;
        let run = |n_dispatches: usize| -> Result<Duration> {
            let mut encoder = context.device.create_command_encoder(&Default::default());
            let mut pass = encoder.begin_compute_pass(&Default::default());
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
        Ok(Measurement {
            kernel: name,
            time: best,
            weight_bytes,
        })
    }
}
