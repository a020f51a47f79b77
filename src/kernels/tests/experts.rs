//! What chooses experts, multiplies with their matrices and adds up their results; and mistakes that must be seen.

use super::{
    Random, Values, altered, first_difference, gpu, int8_rows, padded, run_kernel, unpadded,
    unwritten, variants,
};
use crate::device::wgpu::context::Context;
use crate::gguf::WeightType;
use crate::kernels::experts::{self, ExpertMatrix};
use crate::kernels::repack::Shard;
use crate::kernels::{
    BatchParams, Constants, Kernel, Src, Variant, choose_experts, expert_matvec, expert_weights,
    matvec, quantize, row_stride, weigh_slots, weighted_sum,
};
use crate::plan::{ExpertGroups, Gating};

/// Of products: `f32::EPSILON * (sum |w x| + |bias|)`.
const PRODUCT_BOUND: f64 = 4.0;
/// Of weights: a share of the largest of the row.
const WEIGHT_BOUND: f64 = 1e-5;

fn batch(n_rows: usize) -> BatchParams {
    BatchParams {
        n_rows: n_rows as u32,
        position: 0,
        n_outputs: 0,
        random: 0,
    }
}

struct Routing {
    seed: u64,
    n_rows: usize,
    n_expert: usize,
    n_chosen: usize,
    gating: Gating,
    has_bias: bool,
    groups: Option<ExpertGroups>,
}

impl Routing {
    /// Logits that are well apart, so that rounding chooses no other expert, and biases.
    fn inputs(&self) -> [Vec<f32>; 2] {
        let mut random = Random::new(self.seed);
        let logits = (0..self.n_rows * self.n_expert).map(|_| random.signed() * 3.0);
        let logits = logits.collect();
        let bias = (0..self.n_expert).map(|_| random.signed() * 0.5).collect();
        [logits, bias]
    }

    fn chosen(&self, logits: &[f32], bias: &[f32]) -> Vec<f32> {
        let mut want = vec![0.0; self.n_rows * self.n_chosen];
        experts::choose_twin(
            self.gating,
            logits,
            self.n_expert,
            self.has_bias.then_some(bias),
            self.groups,
            self.n_chosen,
            &mut want,
        );
        want
    }

    fn choose(&self, context: &Context, kernel: &Kernel) -> Result<(), String> {
        let [logits, bias] = self.inputs();
        let counts = [self.n_expert, self.n_chosen];
        let params = choose_experts::Params::new(counts, self.gating, self.has_bias, self.groups);
        let buffers = run_kernel(
            context,
            kernel,
            &variants(&choose_experts::KERNEL, true)[0],
            batch(self.n_rows),
            bytemuck::bytes_of(&params),
            choose_experts::grid(&params, self.n_rows),
            &[
                &padded(&logits, self.n_expert),
                &padded(&bias, self.n_expert),
                &unwritten(self.n_rows, self.n_chosen),
            ],
        );
        let got = unpadded(buffers.last().unwrap(), self.n_chosen);
        judge(&got, &self.chosen(&logits, &bias), |_| 0.0)
    }

    fn weigh(&self, context: &Context, kernel: &Kernel, normalised: bool) -> Result<(), String> {
        self.weigh_by(context, kernel, normalised, false)?;
        self.weigh_by(context, kernel, normalised, true)
    }

    fn weigh_by(
        &self,
        context: &Context,
        kernel: &Kernel,
        normalised: bool,
        has_factors: bool,
    ) -> Result<(), String> {
        const SCALE: f32 = 2.5;
        let [logits, bias] = self.inputs();
        let factors: Vec<f32> = (0..self.n_expert)
            .map(|expert| 0.5 + (expert % 7) as f32)
            .collect();
        let chosen = self.chosen(&logits, &bias);
        let mut want = vec![0.0; chosen.len()];
        let form = (normalised, SCALE, has_factors.then_some(&factors[..]));
        experts::weights_twin(
            self.gating,
            &logits,
            self.n_expert,
            &chosen,
            form,
            &mut want,
        );
        let counts = [self.n_expert, self.n_chosen];
        let params =
            expert_weights::Params::new(counts, self.gating, normalised, SCALE, has_factors);
        let largest = |i: usize| {
            let row = want[i / self.n_chosen * self.n_chosen..][..self.n_chosen].iter();
            row.fold(0.0, |most: f64, x| most.max(f64::from(x.abs())))
        };
        for variant in variants(&expert_weights::KERNEL, context.subgroups()) {
            let buffers = run_kernel(
                context,
                kernel,
                &variant,
                batch(self.n_rows),
                bytemuck::bytes_of(&params),
                expert_weights::grid(&params, self.n_rows),
                &[
                    &padded(&logits, self.n_expert),
                    &padded(&chosen, self.n_chosen),
                    &padded(&factors, self.n_expert),
                    &unwritten(self.n_rows, self.n_chosen),
                ],
            );
            let got = unpadded(buffers.last().unwrap(), self.n_chosen);
            judge(&got, &want, |i| WEIGHT_BOUND * largest(i))?;
        }
        Ok(())
    }
}

fn judge(got: &[f32], want: &[f32], bound: impl Fn(usize) -> f64) -> Result<(), String> {
    first_difference(got, want, bound).map_or(Ok(()), |difference| Err(difference.to_string()))
}

fn routings() -> Vec<Routing> {
    let grouped = ExpertGroups {
        n_group: 4,
        n_used: 2,
    };
    let shapes = [
        (1, 1, 1, None),
        (3, 6, 2, None),
        (2, 127, 8, None),
        (5, 16, 3, Some(grouped)),
        (2, 1024, 64, Some(grouped)),
        (3, 8, 8, None),
    ];
    let mut all = Vec::new();
    for (n_rows, n_expert, n_chosen, groups) in shapes {
        for (gating, has_bias) in [
            (Gating::Softmax, false),
            (Gating::Softmax, true),
            (Gating::Sigmoid, false),
            (Gating::Sigmoid, true),
        ] {
            all.push(Routing {
                seed: all.len() as u64 + 1,
                n_rows,
                n_expert,
                n_chosen,
                gating,
                has_bias,
                groups,
            });
        }
    }
    all
}

#[test]
fn choice_of_experts_matches_its_twin() {
    let Some(context) = gpu() else { return };
    for routing in routings() {
        let result = routing.choose(context, &choose_experts::KERNEL);
        assert!(result.is_ok(), "seed {}: {result:?}", routing.seed);
    }
}

#[test]
fn twin_of_the_choice_is_the_definition() {
    let choose = |logits: &[f32], bias: Option<&[f32]>, groups, n_chosen: usize| {
        let mut dst = vec![f32::NAN; n_chosen];
        let gating = Gating::Sigmoid;
        let n_expert = logits.len();
        experts::choose_twin(gating, logits, n_expert, bias, groups, n_chosen, &mut dst);
        dst
    };
    assert_eq!(
        choose(&[1.0, 3.0, 3.0, 2.0], None, None, 3),
        [1.0, 2.0, 3.0]
    );
    let bias = [1.0, 0.0, 0.0, 0.0];
    assert_eq!(
        choose(&[0.0, 3.0, 2.0, 1.0], Some(&bias), None, 2),
        [0.0, 1.0]
    );
    let groups = Some(ExpertGroups {
        n_group: 2,
        n_used: 1,
    });
    // The best expert of all is in the group whose two best are worth less.
    assert_eq!(choose(&[9.0, -9.0, 1.0, 2.0], None, groups, 2), [3.0, 2.0]);
}

#[test]
fn twin_of_the_weights_is_the_definition() {
    let logits = [0.0, 3f32.ln(), 0.0];
    let weigh = |gating, form| {
        let mut dst = [f32::NAN; 2];
        experts::weights_twin(gating, &logits, 3, &[1.0, 2.0], form, &mut dst);
        dst
    };
    let near = |found: [f32; 2], expected: [f32; 2]| {
        let error = (found[0] - expected[0]).abs() + (found[1] - expected[1]).abs();
        assert!(error < 1e-6, "{found:?}, expected {expected:?}");
    };
    near(weigh(Gating::Softmax, (false, 1.0, None)), [0.6, 0.2]);
    near(weigh(Gating::Softmax, (true, 1.0, None)), [0.75, 0.25]);
    near(weigh(Gating::Sigmoid, (false, 2.0, None)), [1.5, 1.0]);
    near(weigh(Gating::Sigmoid, (true, 1.0, None)), [0.6, 0.4]);
    let factors = Some(&[7.0, 2.0, 0.5][..]);
    near(weigh(Gating::Softmax, (true, 2.0, factors)), [3.0, 0.25]);
}

#[test]
fn weights_of_experts_match_their_twin() {
    let Some(context) = gpu() else { return };
    for routing in routings() {
        for normalised in [false, true] {
            let result = routing.weigh(context, &expert_weights::KERNEL, normalised);
            assert!(result.is_ok(), "seed {}: {result:?}", routing.seed);
        }
    }
}

#[test]
fn mistakes_in_routing_are_seen() {
    let Some(context) = gpu() else { return };
    for (from, to) in [
        ("value += bias[i];", ""),
        ("other < i;", "other > i + p.n_expert;"),
        ("rank >= p.n_used", "rank > p.n_used"),
        ("worths[group] = best + second;", "worths[group] = best;"),
        ("rank < p.n_chosen", "rank + 1u < p.n_chosen"),
    ] {
        let kernel = altered(&choose_experts::KERNEL, &Variant::PLAIN, from, to);
        // Rows of equal logits, which the order of ids tells apart.
        let ties = Routing {
            seed: 7,
            n_rows: 1,
            n_expert: 4,
            n_chosen: 2,
            gating: Gating::Softmax,
            has_bias: false,
            groups: None,
        };
        let equal = [0.5; 4];
        let params = choose_experts::Params::new([4, 2], ties.gating, false, None);
        let buffers = run_kernel(
            context,
            &kernel,
            &Variant::PLAIN,
            batch(1),
            bytemuck::bytes_of(&params),
            choose_experts::grid(&params, 1),
            &[&padded(&equal, 4), &padded(&equal, 4), &unwritten(1, 2)],
        );
        let got: Vec<f32> = bytemuck::pod_collect_to_vec(&buffers[2][..8]);
        let tie_is_seen = judge(&got, &ties.chosen(&equal, &equal), |_| 0.0).is_err();
        let routings = routings();
        let mut results = routings
            .iter()
            .map(|routing| routing.choose(context, &kernel));
        let is_seen = tie_is_seen || results.any(|result| result.is_err());
        assert!(is_seen, "`{from}` as `{to}`");
    }
    for (from, to) in [
        ("max(divisor, p.least_sum)", "1.0"),
        ("divisor * p.scale", "divisor"),
        ("exp(x - highest) / total", "exp(x - highest)"),
        ("row * p.chosen_stride + slot]), p", "slot]), p"),
        ("p.has_factors == 1u", "p.has_factors == 2u"),
        ("factors[expert_of(row, slot)]", "factors[slot]"),
    ] {
        let kernel = altered(&expert_weights::KERNEL, &Variant::PLAIN, from, to);
        let is_seen = routings().iter().any(|routing| {
            [false, true]
                .iter()
                .any(|&normalised| routing.weigh(context, &kernel, normalised).is_err())
        });
        assert!(is_seen, "`{from}` as `{to}`");
    }
}

/// An expert that no row has.
const UNCHOSEN: usize = 2;

/// What a product gives of activations as the kernel sees them.
struct Expected {
    seen: Vec<u8>,
    want: Vec<f32>,
    /// The same of magnitudes.
    size: Vec<f32>,
}

struct Product {
    seed: u64,
    ty: WeightType,
    n_expert: usize,
    n_out: usize,
    n_cols: usize,
    n_rows: usize,
    n_chosen: usize,
    is_by_slot: bool,
    has_bias: bool,
    /// The first row of each shard.
    shards: &'static [usize],
}

impl Product {
    fn check(&self, context: &Context, kernel: &Kernel) -> Result<(), String> {
        let Product {
            ty,
            n_expert,
            n_out,
            n_cols,
            n_rows,
            n_chosen,
            ..
        } = *self;
        let mut random = Random::new(self.seed);
        let n_all = n_expert * n_out;
        let mut file = Vec::new();
        for row in 0..n_all {
            // What nothing has chosen is no number, where it can be none: it must not count.
            let is_chosen = row / n_out != UNCHOSEN || ty != WeightType::F32;
            let value = |_| if is_chosen { random.signed() } else { f32::NAN };
            let row: Vec<f32> = (0..n_cols).map(value).collect();
            file.extend(ty.encode(&row));
        }
        let n_slots = n_rows * n_chosen;
        let n_src = if self.is_by_slot { n_slots } else { n_rows };
        let src = Values::Random.fill(&mut random, n_src * n_cols);
        let bias = Values::Random.fill(&mut random, n_all);
        let bias = self.has_bias.then_some(bias);
        let chosen: Vec<f32> = (0..n_slots)
            .map(|_| random.bits() as usize % n_expert)
            .map(|id| if id == UNCHOSEN { 0.0 } else { id as f32 })
            .collect();

        let row_bytes = ty.row_bytes(n_cols);
        let decode = |row: usize, out: &mut [f32]| {
            ty.decode(&file[row * row_bytes..][..row_bytes], out);
        };
        let sizes = |row: usize, out: &mut [f32]| {
            decode(row, out);
            out.iter_mut().for_each(|weight| *weight = weight.abs());
        };
        let matrix = ExpertMatrix {
            n_expert,
            n_out,
            n_cols,
        };
        let absolute = |values: &[f32]| values.iter().map(|x| x.abs()).collect::<Vec<f32>>();
        let bias_size = bias.as_deref().map(absolute);
        let bias_size = bias_size.as_deref();
        let expected = |src: &[f32], seen: Vec<u8>| {
            let mut want = vec![0.0; n_slots * n_out];
            let mut size = want.clone();
            experts::matmul_twin(&decode, matrix, src, &chosen, bias.as_deref(), &mut want);
            experts::matmul_twin(
                &sizes,
                matrix,
                &absolute(src),
                &chosen,
                bias_size,
                &mut size,
            );
            Expected { seen, want, size }
        };
        let exact = expected(&src, padded(&src, n_cols));
        let mut rounded = src.clone();
        quantize::twin(&src, n_cols, &mut rounded);
        let rounded = expected(&rounded, int8_rows(&src, n_cols));

        for variant in variants(&expert_matvec::KERNEL, context.subgroups()) {
            if variant.weight != ty || variant.workgroup != 128 {
                continue;
            }
            let Expected { seen, want, size } = match variant.src {
                Src::F32 | Src::Norm => &exact,
                Src::Int8 => &rounded,
            };
            let mut dst = unwritten(n_slots, n_out);
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
                let rows = 0..shard.n_rows;
                shard.repack_rows(rows, bytes, &mut Vec::new(), |offset, part| {
                    words[offset..][..part.len()].copy_from_slice(part);
                });
                let matrix = shard.matrix();
                let params = expert_matvec::Params {
                    matrix,
                    src_stride: row_stride(n_cols) as u32,
                    dst_stride: row_stride(n_out) as u32,
                    n_pairs: matvec::n_pairs(matrix.team_size, variant.src),
                    has_bias: self.has_bias.into(),
                    n_out: n_out as u32,
                    n_expert: n_expert as u32,
                    n_chosen: n_chosen as u32,
                    chosen_stride: row_stride(n_chosen) as u32,
                    slots_per_src: if self.is_by_slot { 1 } else { n_chosen as u32 },
                    padding: [0; 3],
                };
                let bias = bias.clone().unwrap_or_else(|| vec![0.0]);
                let constants = Constants::new(bytemuck::bytes_of(&params));
                let in_text = self.seed.is_multiple_of(2) && !kernel.uses.is_whole;
                let mut buffers = run_kernel(
                    context,
                    kernel,
                    &Variant {
                        constants: constants.filter(|_| in_text),
                        ..variant
                    },
                    batch(n_rows),
                    bytemuck::bytes_of(&params),
                    expert_matvec::grid(&params, n_slots),
                    &[
                        bytemuck::cast_slice(&words),
                        seen,
                        &padded(&chosen, n_chosen),
                        &padded(&bias, bias.len()),
                        &dst,
                    ],
                );
                dst = buffers.swap_remove(4);
            }
            let rows = dst.chunks_exact(row_stride(n_out) * 4);
            let got: Vec<f32> = rows
                .flat_map(|row| bytemuck::pod_collect_to_vec::<u8, f32>(&row[..n_out * 4]))
                .collect();
            // Of int8 also |offset x|, which is no larger than |w x| here.
            let factor = match variant.src {
                Src::F32 | Src::Norm => PRODUCT_BOUND,
                Src::Int8 => 2.0 * PRODUCT_BOUND,
            };
            let bound = |i: usize| factor * f64::from(f32::EPSILON) * f64::from(size[i]) + 1e-37;
            judge(&got, want, bound)
                .map_err(|what| format!("{variant:?}, seed {}: {what}", self.seed))?;
        }
        Ok(())
    }
}

fn product(ty: WeightType, seed: u64) -> Product {
    // Rows of whole blocks; an expert's rows begin within a shard, and in another.
    let n_cols = ty.block_len().max(32) * 2 + if ty.block_len() == 1 { 5 } else { 0 };
    Product {
        seed,
        ty,
        n_expert: 5,
        n_out: 33,
        n_cols,
        n_rows: 3,
        n_chosen: 2,
        is_by_slot: seed.is_multiple_of(2),
        has_bias: seed.is_multiple_of(3),
        shards: if seed.is_multiple_of(2) {
            &[0]
        } else {
            &[0, 40, 99]
        },
    }
}

#[test]
fn products_of_experts_match_their_twin_for_every_weight_type() {
    let Some(context) = gpu() else { return };
    for (seed, ty) in (1..).zip(WeightType::ALL) {
        for seed in [seed, seed + 1000] {
            let result = product(ty, seed).check(context, &expert_matvec::KERNEL);
            assert!(result.is_ok(), "{result:?}");
        }
    }
    for n_out in [1, 2, 127, 513] {
        let shape = Product {
            n_out,
            shards: &[0],
            ..product(WeightType::Q8_0, 6)
        };
        let result = shape.check(context, &expert_matvec::KERNEL);
        assert!(result.is_ok(), "{n_out} outputs: {result:?}");
    }
}

#[test]
fn mistakes_in_products_of_experts_are_seen() {
    let Some(context) = gpu() else { return };
    let variant = Variant::PLAIN;
    for (from, to) in [
        ("i32(expert * p.n_out) -", "0 -"),
        ("- i32(p.matrix.first_row)", ""),
        ("slot / p.slots_per_src, lane", "slot, lane"),
        ("bias[expert * p.n_out + output]", "bias[output]"),
        (
            "slot / p.n_chosen * p.chosen_stride + slot % p.n_chosen",
            "slot",
        ),
    ] {
        let kernel = altered(&expert_matvec::KERNEL, &variant, from, to);
        let is_seen = [3, 5, 6, 9].into_iter().any(|seed| {
            product(WeightType::F32, seed)
                .check(context, &kernel)
                .is_err()
        });
        assert!(is_seen, "`{from}` as `{to}`");
    }
}

fn check_sum(context: &Context, kernel: &Kernel, [n_rows, n_slots, width]: [usize; 3]) -> bool {
    let mut random = Random::new(width as u64);
    let src = Values::Random.fill(&mut random, n_rows * n_slots * width);
    let weights = Values::Random.fill(&mut random, n_rows * n_slots);
    let mut want = vec![0.0; n_rows * width];
    experts::sum_twin(n_slots, width, &src, &weights, &mut want);
    let absolute = |values: &[f32]| values.iter().map(|x| x.abs()).collect::<Vec<f32>>();
    let mut size = want.clone();
    experts::sum_twin(
        n_slots,
        width,
        &absolute(&src),
        &absolute(&weights),
        &mut size,
    );
    let params = weighted_sum::Params::new(width, n_slots);
    let buffers = run_kernel(
        context,
        kernel,
        &Variant::PLAIN,
        batch(n_rows),
        bytemuck::bytes_of(&params),
        weighted_sum::grid(&params, n_rows),
        &[
            &padded(&src, width),
            &padded(&weights, n_slots),
            &unwritten(n_rows, width),
        ],
    );
    let got = unpadded(buffers.last().unwrap(), width);
    let eps = f64::from(f32::EPSILON) * (n_slots + 1) as f64;
    judge(&got, &want, |i| eps * f64::from(size[i])).is_ok()
}

/// Whether rows that are weighed for `n_slots` slots are those of the twin.
fn check_slots(context: &Context, kernel: &Kernel, [n_rows, n_slots, width]: [usize; 3]) -> bool {
    let mut random = Random::new(width as u64);
    let src = Values::Random.fill(&mut random, n_rows * width);
    let weights = Values::Random.fill(&mut random, n_rows * n_slots);
    let mut want = vec![0.0; n_rows * n_slots * width];
    experts::weigh_twin(width, &src, &weights, &mut want);
    let params = weigh_slots::Params::new(width, n_slots);
    let buffers = run_kernel(
        context,
        kernel,
        &Variant::PLAIN,
        batch(n_rows),
        bytemuck::bytes_of(&params),
        weigh_slots::grid(&params, n_rows * n_slots),
        &[
            &padded(&src, width),
            &padded(&weights, n_slots),
            &unwritten(n_rows * n_slots, width),
        ],
    );
    let got = unpadded(buffers.last().unwrap(), width);
    judge(&got, &want, |_| 0.0).is_ok()
}

#[test]
fn weighed_slots_match_their_twin_and_mistakes_are_seen() {
    let Some(context) = gpu() else { return };
    for shape in [
        [1, 1, 1],
        [3, 2, 31],
        [2, 8, 127],
        [4, 64, 129],
        [2, 4, 2880],
    ] {
        let is_right = check_slots(context, &weigh_slots::KERNEL, shape);
        assert!(is_right, "{shape:?}");
    }
    for (from, to) in [
        ("row * p.weights_stride + slot", "slot"),
        ("src[row * stride + quad]", "src[quad]"),
        ("workgroup.z / p.n_slots", "workgroup.z % p.n_slots"),
    ] {
        let kernel = altered(&weigh_slots::KERNEL, &Variant::PLAIN, from, to);
        let is_seen = !check_slots(context, &kernel, [3, 2, 31]);
        assert!(is_seen, "`{from}` as `{to}`");
    }
}

#[test]
fn twin_of_weighed_slots_is_the_definition() {
    let mut dst = [f32::NAN; 8];
    let (src, weights) = ([1.0, 2.0, 3.0, 4.0], [10.0, 0.5, 2.0, -1.0]);
    experts::weigh_twin(2, &src, &weights, &mut dst);
    assert_eq!(dst, [10.0, 20.0, 0.5, 1.0, 6.0, 8.0, -3.0, -4.0]);
}

#[test]
fn sum_without_weights_counts_all_alike() {
    let Some(context) = gpu() else { return };
    let (n_rows, n_slots, width) = (3, 4, 31);
    let src = Values::Random.fill(&mut Random::new(5), n_rows * n_slots * width);
    let mut want = vec![0.0; n_rows * width];
    experts::sum_twin(n_slots, width, &src, &[1.0; 12], &mut want);
    let params = weighted_sum::Params::new(width, n_slots).unweighted();
    let condition = "p.weights_stride == 0u";
    for (to, is_right) in [(condition, true), ("p.weights_stride == 1u", false)] {
        let kernel = altered(&weighted_sum::KERNEL, &Variant::PLAIN, condition, to);
        let buffers = run_kernel(
            context,
            &kernel,
            &Variant::PLAIN,
            batch(n_rows),
            bytemuck::bytes_of(&params),
            weighted_sum::grid(&params, n_rows),
            &[
                &padded(&src, width),
                &padded(&[3.0; 12], n_slots),
                &unwritten(n_rows, width),
            ],
        );
        let got = unpadded(buffers.last().unwrap(), width);
        assert_eq!(judge(&got, &want, |_| 1e-5).is_ok(), is_right, "`{to}`");
    }
}

#[test]
fn weighted_sum_matches_its_twin_and_mistakes_are_seen() {
    let Some(context) = gpu() else { return };
    let shapes = [
        [1, 1, 1],
        [3, 2, 31],
        [2, 8, 127],
        [4, 64, 129],
        [2, 4, 2880],
    ];
    for shape in shapes {
        assert!(
            check_sum(context, &weighted_sum::KERNEL, shape),
            "{shape:?}"
        );
    }
    for (from, to) in [
        ("row * p.weights_stride + slot", "slot"),
        ("(row * p.n_slots + slot)", "(row + slot)"),
        ("slot < p.n_slots", "slot + 1u < p.n_slots"),
    ] {
        let kernel = altered(&weighted_sum::KERNEL, &Variant::PLAIN, from, to);
        assert!(
            !check_sum(context, &kernel, [3, 2, 31]),
            "`{from}` as `{to}`"
        );
    }
}
