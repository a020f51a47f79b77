//! The products of heads with matrices of their own, and mistakes that must be seen.

use super::{
    Random, Values, altered, first_difference, gpu, padded, run_kernel, unwritten, variants,
};
use crate::device::wgpu::context::Context;
use crate::gguf::WeightType;
use crate::kernels::head_matvec::{self, Heads, KERNEL, Params};
use crate::kernels::repack::Shard;
use crate::kernels::{BatchParams, Kernel, Src, Variant, matvec, row_stride};

/// `f32::EPSILON * sum |w x|`.
const BOUND: f64 = 4.0;

struct Case {
    seed: u64,
    ty: WeightType,
    heads: Heads,
    n_rows: usize,
    /// The first row of each shard.
    shards: &'static [usize],
}

impl Case {
    fn check(&self, context: &Context, kernel: &Kernel) -> Result<(), String> {
        let Case {
            ty, heads, n_rows, ..
        } = *self;
        let Heads {
            n_head,
            src_dim,
            n_out,
            n_cols,
        } = heads;
        let mut random = Random::new(self.seed);
        let n_all = n_head * n_out;
        let mut file = Vec::new();
        for _ in 0..n_all {
            let row: Vec<f32> = (0..n_cols).map(|_| random.signed()).collect();
            file.extend(ty.encode(&row));
        }
        let (src_width, dst_width) = (n_head * src_dim, n_head * heads.dst_dim());
        let src = Values::Random.fill(&mut random, n_rows * src_width);
        let row_bytes = ty.row_bytes(n_cols);
        let decode = |row: usize, out: &mut [f32]| {
            ty.decode(&file[row * row_bytes..][..row_bytes], out);
        };
        let sizes = |row: usize, out: &mut [f32]| {
            decode(row, out);
            out.iter_mut().for_each(|weight| *weight = weight.abs());
        };
        let mut want = vec![f32::NAN; n_rows * dst_width];
        head_matvec::twin(&decode, &heads, &src, &mut want);
        let absolute: Vec<f32> = src.iter().map(|x| x.abs()).collect();
        let mut size = want.clone();
        head_matvec::twin(&sizes, &heads, &absolute, &mut size);

        for variant in variants(&KERNEL, context.subgroups()) {
            if variant.weight != ty || variant.src != Src::F32 {
                continue;
            }
            let mut dst = unwritten(n_rows, dst_width);
            for (index, &first_row) in self.shards.iter().enumerate() {
                let end = self.shards.get(index + 1).copied().unwrap_or(n_all);
                let shard = Shard {
                    ty,
                    first_row,
                    n_rows: end - first_row,
                    n_cols,
                };
                let mut words = vec![0; shard.words()];
                let bytes = &file[first_row * row_bytes..end * row_bytes];
                shard.repack_rows(0..shard.n_rows, bytes, &mut Vec::new(), |offset, part| {
                    words[offset..][..part.len()].copy_from_slice(part);
                });
                let matrix = shard.matrix();
                let n_pairs = matvec::n_pairs(matrix.team_size, Src::F32);
                let params = Params::new(matrix, n_pairs, &heads);
                let batch = BatchParams {
                    n_rows: n_rows as u32,
                    position: 0,
                    n_outputs: 0,
                    random: 0,
                };
                let mut buffers = run_kernel(
                    context,
                    kernel,
                    &variant,
                    batch,
                    bytemuck::bytes_of(&params),
                    head_matvec::grid(&params, n_rows),
                    &[bytemuck::cast_slice(&words), &padded(&src, src_width), &dst],
                );
                dst = buffers.swap_remove(2);
            }
            let fresh = unwritten(1, dst_width);
            let mut got = Vec::new();
            for row in dst.chunks_exact(row_stride(dst_width) * 4) {
                let (row, behind) = row.split_at(dst_width * 4);
                got.extend(bytemuck::pod_collect_to_vec::<u8, f32>(row));
                if behind != &fresh[dst_width * 4..] {
                    return Err(format!("{ty:?}: wrote behind a row"));
                }
            }
            let eps = BOUND * f64::from(f32::EPSILON);
            let bound = |i: usize| match i % heads.dst_dim() < src_dim - n_cols {
                true => 0.0,
                false => eps * f64::from(size[i]) + 1e-37,
            };
            if let Some(difference) = first_difference(&got, &want, bound) {
                return Err(format!("{ty:?}, {heads:?}: {difference}"));
            }
        }
        Ok(())
    }
}

fn case(ty: WeightType, seed: u64) -> Case {
    // Heads begin at any quad, and a matrix within a shard and in another.
    let n_cols = ty.block_len().max(32) * 2 + if ty.block_len() == 1 { 4 } else { 0 };
    Case {
        seed,
        ty,
        heads: Heads {
            n_head: 5,
            src_dim: n_cols + if seed.is_multiple_of(3) { 0 } else { 12 },
            n_out: 33,
            n_cols,
        },
        n_rows: 3,
        shards: if seed.is_multiple_of(2) {
            &[0]
        } else {
            &[0, 40, 99]
        },
    }
}

#[test]
fn products_of_heads_match_their_twin_for_every_weight_type() {
    let Some(context) = gpu() else { return };
    for (seed, ty) in (1..).zip(WeightType::ALL) {
        for seed in [seed, seed + 1001] {
            let result = case(ty, seed).check(context, &KERNEL);
            assert!(result.is_ok(), "seed {seed}: {result:?}");
        }
    }
}

#[test]
fn products_of_heads_match_their_twin_for_any_shape() {
    let Some(context) = gpu() else { return };
    let shapes = [
        (1, 1, 4, 4),
        (4, 20, 24, 16),
        (4, 12, 20, 20),
        (2, 513, 192, 128),
        (3, 128, 512, 512),
        (7, 127, 36, 4),
    ];
    for (seed, (n_head, n_out, src_dim, n_cols)) in (51..).zip(shapes) {
        for n_rows in [1, 2, 67] {
            let heads = Heads {
                n_head,
                src_dim,
                n_out,
                n_cols,
            };
            let case = Case {
                seed,
                ty: WeightType::F32,
                heads,
                n_rows,
                shards: &[0],
            };
            let result = case.check(context, &KERNEL);
            assert!(result.is_ok(), "seed {seed}: {result:?}");
        }
    }
}

#[test]
fn mistakes_in_products_of_heads_are_seen() {
    let Some(context) = gpu() else { return };
    for (from, to) in [
        ("i32(head * p.n_out) -", "0 -"),
        ("- i32(p.matrix.first_row)", ""),
        ("+ head * (p.src_dim / 4u)", ""),
        ("workgroup.z * p.row_quads", "0u"),
        ("let at = p.src_dim - p.n_rest + i", "let at = i"),
        ("i < p.n_rest", "i + 1u < p.n_rest"),
        ("dst_start + p.n_rest + output", "dst_start + output"),
        ("output < p.n_out &&", "output + 1u < p.n_out &&"),
    ] {
        let kernel = altered(&KERNEL, &Variant::PLAIN, from, to);
        let is_seen = [1, 2]
            .into_iter()
            .any(|seed| case(WeightType::F32, seed).check(context, &kernel).is_err());
        assert!(is_seen, "`{from}` as `{to}`");
    }
}

#[test]
fn twin_of_products_of_heads_is_the_definition() {
    let heads = Heads {
        n_head: 2,
        src_dim: 3,
        n_out: 1,
        n_cols: 2,
    };
    let matrices = [[1.0, 10.0], [2.0, 3.0]];
    let decode = |row: usize, out: &mut [f32]| out.copy_from_slice(&matrices[row]);
    let mut dst = [f32::NAN; 4];
    let src = [1.0, 2.0, 7.0, 3.0, 4.0, 8.0];
    head_matvec::twin(&decode, &heads, &src, &mut dst);
    assert_eq!(dst, [7.0, 21.0, 8.0, 18.0]);
}
