//! Which steps of a plan one kernel computes together, in batches of few rows. The kernels write what
//! each step would have written, so that the plan stays what is observed and verified.

pub(super) use self::experts::ExpertGated;

use crate::kernels::{Kernel, expert_gated, matvec_gated, matvec_heads};
use crate::model::WeightId;
use crate::plan::{Activation, BufferId, Extent, Op, Plan, RopeTableId};
use std::collections::BTreeSet;
use std::ops::Range;

mod experts;

/// Steps that one kernel computes together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Group {
    Heads(Heads),
    Gated(Gated),
    ExpertGated(ExpertGated),
}

/// A projection to heads, its rotation, and its part of a store in the cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Heads {
    pub(super) product: Product,
    pub(super) bias: Option<WeightId>,
    pub(super) rope: Option<Rope>,
    /// The layer, and 0 for its keys or 1 for its values.
    pub(super) cache: Option<(usize, usize)>,
    pub(super) norm: Option<Norm>,
}

/// The norm of a product's source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Norm {
    pub(super) src: BufferId,
    pub(super) weight: WeightId,
    pub(super) eps: f32,
    /// Whether this kernel is the one that writes the norm's result.
    pub(super) writes: bool,
}

/// A rotation of heads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rope {
    pub(super) table: RopeTableId,
    pub(super) head_dim: usize,
    pub(super) dst: BufferId,
}

/// Both products of a gated feed-forward block and its non-linearity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Gated {
    pub(super) gate: Product,
    pub(super) up: Product,
    pub(super) activation: Activation,
    pub(super) dst: BufferId,
    pub(super) norm: Option<Norm>,
}

/// A product with a weight matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Product {
    pub(super) src: BufferId,
    pub(super) weight: WeightId,
    /// Whether few rows of `src` become int8.
    pub(super) int8: bool,
    pub(super) dst: BufferId,
}

/// What a step is to the groups.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part {
    /// In none.
    Alone,
    /// The first of its group, where the kernel runs, and all steps of the group.
    First(Group, Vec<usize>),
    /// Computed by a step in front of it.
    Later,
}

/// Where weights lie.
pub(in crate::device::wgpu) trait Places {
    /// Whether all of a weight is in one binding.
    fn is_whole(&self, weight: WeightId) -> bool;

    /// Whether one binding holds both weights, which have one type and shape, the second behind the first.
    fn are_together(&self, first: WeightId, second: WeightId) -> bool;

    /// Elements of a row of a weight.
    fn width(&self, weight: WeightId) -> usize;

    /// Whether a kernel of few rows normalises rows of a width for itself.
    fn may_normalise(&self, kernel: &Kernel, width: usize) -> bool;
}

/// What each step of a plan is.
pub(super) fn parts(plan: &Plan, places: &dyn Places) -> Vec<Part> {
    let finder = Finder { plan, places };
    let mut parts = vec![Part::Alone; plan.steps.len()];
    for (index, step) in plan.steps.iter().enumerate() {
        match step.op {
            Op::Rope { .. } => {
                if let Some((steps, heads)) = finder.rotated(index) {
                    let first = steps[0];
                    parts[first] = Part::First(Group::Heads(heads), steps);
                    parts[index] = Part::Later;
                }
            }
            Op::StoreKv { k, v, layer } if k != v => {
                let heads = [k, v].map(|buffer| finder.stored(index, buffer));
                if let [Some(keys), Some(values)] = heads {
                    for (part, (mut steps, heads)) in [keys, values].into_iter().enumerate() {
                        let cache = Some((layer, part));
                        let group = Group::Heads(Heads { cache, ..heads });
                        steps.push(index);
                        let first = steps[0];
                        parts[first] = Part::First(group, steps);
                    }
                    parts[index] = Part::Later;
                }
            }
            Op::GatedActivation { .. } => {
                if let Some((steps, gated)) = finder.gated(index) {
                    let [first, second] = steps;
                    let all = vec![first, second, index];
                    parts[first] = Part::First(Group::Gated(gated), all);
                    parts[second] = Part::Later;
                    parts[index] = Part::Later;
                } else if let Some(([first, second], gated)) = finder.expert_gated(index) {
                    let all = vec![first, second, index];
                    parts[first] = Part::First(Group::ExpertGated(gated), all);
                    parts[second] = Part::Later;
                    parts[index] = Part::Later;
                }
            }
            _ => {}
        }
    }
    for index in 0..parts.len() {
        finder.move_norm(index, &mut parts);
    }
    parts
}

/// The products, by their step, whose kernel makes what they take in for itself.
pub(super) fn normed_in_kernels(parts: &[Part]) -> BTreeSet<usize> {
    let of = |part: &Part| match part {
        Part::First(group, steps) if group.norm().is_some() => steps.clone(),
        _ => Vec::new(),
    };
    parts.iter().flat_map(of).collect()
}

/// Whether what a step writes to a buffer is read by some steps alone.
pub(super) fn is_read_within(
    plan: &Plan,
    steps: &[usize],
    writer: usize,
    buffer: BufferId,
) -> bool {
    let behind = plan.steps.iter().enumerate().skip(writer + 1);
    behind
        .take_while(|(_, step)| step.op.dst() != Some(buffer))
        .filter(|(_, step)| step.op.sources().contains(&buffer))
        .all(|(reader, _)| steps.contains(&reader))
}

impl Group {
    /// What computes them.
    fn kernel(&self) -> &'static Kernel {
        match self {
            Group::Heads(_) => &matvec_heads::KERNEL,
            Group::Gated(_) => &matvec_gated::KERNEL,
            Group::ExpertGated(_) => &expert_gated::KERNEL,
        }
    }

    /// The source of its products, and where its norm goes; none where it cannot have one.
    fn src_and_norm(&mut self) -> Option<(Product, &mut Option<Norm>)> {
        match self {
            Group::Heads(heads) => Some((heads.product, &mut heads.norm)),
            Group::Gated(gated) => Some((gated.gate, &mut gated.norm)),
            Group::ExpertGated(_) => None,
        }
    }

    /// Whether its kernel makes what its products take in for itself.
    pub(super) fn norm(&self) -> Option<Norm> {
        match self {
            Group::Heads(heads) => heads.norm,
            Group::Gated(gated) => gated.norm,
            Group::ExpertGated(_) => None,
        }
    }
}

struct Finder<'a> {
    plan: &'a Plan,
    places: &'a dyn Places,
}

impl Finder<'_> {
    /// The last step in front of `before` that writes a buffer.
    fn writer(&self, before: usize, buffer: BufferId) -> Option<usize> {
        let writes = |index: &usize| self.plan.steps[*index].op.dst() == Some(buffer);
        (0..before).rev().find(writes)
    }

    /// Whether no step of a range reads or writes a buffer, so that it may be written at the range's start.
    fn is_untouched(&self, steps: Range<usize>, buffer: BufferId) -> bool {
        self.plan.steps[steps]
            .iter()
            .all(|step| step.op.dst() != Some(buffer) && !step.op.sources().contains(&buffer))
    }

    /// The product of a step, of the rows of tokens and with a whole weight, and its bias.
    fn product(&self, step: usize) -> Option<(Product, Option<WeightId>)> {
        let Op::MatMul {
            src,
            weight,
            bias,
            int8_rows,
            dst,
        } = self.plan.steps[step].op
        else {
            return None;
        };
        let int8 = int8_rows > 0;
        let fits = self.places.is_whole(weight) && self.plan.buffer(dst).extent == Extent::Tokens;
        fits.then_some((
            Product {
                src,
                weight,
                int8,
                dst,
            },
            bias,
        ))
    }

    /// The product whose result a rotation turns, and the rotation.
    fn rotated(&self, step: usize) -> Option<(Vec<usize>, Heads)> {
        let Op::Rope {
            src,
            table,
            head_dim,
            dst,
        } = self.plan.steps[step].op
        else {
            return None;
        };
        let of_product = self.writer(step, src)?;
        let (product, bias) = self.product(of_product)?;
        let n_dims = self.plan.rope_tables[table.0].n_dims();
        let fits = matvec_heads::fits(head_dim, n_dims)
            && ![src, product.src].contains(&dst)
            && self.is_untouched(of_product..step, dst);
        let rope = Some(Rope {
            table,
            head_dim,
            dst,
        });
        let (cache, norm) = (None, None);
        let heads = Heads {
            product,
            bias,
            rope,
            cache,
            norm,
        };
        fits.then_some((vec![of_product, step], heads))
    }

    /// The product whose result, turned or not, a store in the cache takes.
    fn stored(&self, store: usize, buffer: BufferId) -> Option<(Vec<usize>, Heads)> {
        let writer = self.writer(store, buffer)?;
        let (steps, heads) = match self.plan.steps[writer].op {
            Op::Rope { .. } => self.rotated(writer)?,
            _ => {
                let (product, bias) = self.product(writer)?;
                let (rope, cache, norm) = (None, None, None);
                let heads = Heads {
                    product,
                    bias,
                    rope,
                    cache,
                    norm,
                };
                (vec![writer], heads)
            }
        };
        let reads_cache = |step: usize| matches!(self.plan.steps[step].op, Op::Attention { .. });
        let fits = matvec_heads::fits(self.plan.buffer(buffer).width, 0)
            && !(steps[0]..store).any(reads_cache);
        fits.then_some((steps, heads))
    }

    /// The two products of a gated block in their order, and all three steps.
    fn gated(&self, step: usize) -> Option<([usize; 2], Gated)> {
        let Op::GatedActivation {
            gate,
            up,
            activation,
            dst,
        } = self.plan.steps[step].op
        else {
            return None;
        };
        let of_gate = self.writer(step, gate)?;
        let of_up = self.writer(step, up)?;
        let first = of_gate.min(of_up);
        let (Some((gate, None)), Some((up, None))) = (self.product(of_gate), self.product(of_up))
        else {
            return None;
        };
        let fits = gate.src == up.src
            && gate.int8 == up.int8
            && ![gate.dst, up.dst, dst].contains(&gate.src)
            && self.is_untouched(first..step, dst)
            && self.is_untouched(first..of_gate.max(of_up), up.dst)
            && self.places.are_together(gate.weight, up.weight);
        let norm = None;
        let gated = Gated {
            gate,
            up,
            activation,
            dst,
            norm,
        };
        fits.then_some(([first, of_gate.max(of_up)], gated))
    }

    /// Leaves a norm of rows to the kernels that take in its result, where all of them can: the first of them
    /// runs at its turn.
    fn move_norm(&self, step: usize, parts: &mut [Part]) {
        let Op::RmsNorm {
            src,
            weight,
            eps,
            dst,
        } = self.plan.steps[step].op
        else {
            return;
        };
        let width = self.plan.buffer(dst).width;
        if self.places.width(weight) != width || src == dst {
            return;
        }
        let steps = self.plan.steps[step + 1..].iter();
        let n_until_overwritten = steps.take_while(|s| s.op.dst() != Some(dst)).count();
        let readers: Vec<usize> = (step + 1..step + 1 + n_until_overwritten)
            .filter(|&reader| self.plan.steps[reader].op.sources().contains(&dst))
            .collect();
        let firsts: Vec<usize> = (step + 1..step + 1 + n_until_overwritten)
            .filter(|&first| match &mut parts[first] {
                Part::First(group, _) => {
                    let takes = self.places.may_normalise(group.kernel(), width);
                    let product = group.src_and_norm().map(|(product, _)| product);
                    product.is_some_and(|product| product.src == dst && product.int8 && takes)
                }
                Part::Alone | Part::Later => false,
            })
            .collect();
        let is_of_group = |reader: &usize| {
            firsts.iter().any(|&first| match &parts[first] {
                Part::First(_, steps) => steps.contains(reader),
                Part::Alone | Part::Later => false,
            })
        };
        let Some(&first) = firsts.first() else {
            return;
        };
        let last = firsts[firsts.len() - 1];
        let src_stays = self.plan.steps[step..last]
            .iter()
            .all(|s| s.op.dst() != Some(src));
        let moves = readers.iter().all(is_of_group)
            && src_stays
            && self
                .written_by(&parts[first])
                .iter()
                .all(|&buffer| self.is_untouched(step..first, buffer));
        if !moves {
            return;
        }
        for &reader in &firsts {
            if let Part::First(group, _) = &mut parts[reader]
                && let Some((_, norm)) = group.src_and_norm()
            {
                *norm = Some(Norm {
                    src,
                    weight,
                    eps,
                    writes: reader == first,
                });
            }
        }
        if let Part::First(group, mut steps) = std::mem::replace(&mut parts[first], Part::Later) {
            steps.insert(0, step);
            parts[step] = Part::First(group, steps);
        }
    }

    /// The buffers that the steps of a group write.
    fn written_by(&self, part: &Part) -> Vec<BufferId> {
        match part {
            Part::First(_, steps) => {
                let dst = |&step: &usize| self.plan.steps[step].op.dst();
                steps.iter().filter_map(dst).collect()
            }
            Part::Alone | Part::Later => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Gguf, WeightType};
    use crate::kernels::matvec;
    use crate::model::{DecoderModel, WeightStorage, decoder_plan};
    use crate::support::shared;
    use crate::tiny;
    use std::sync::Arc;

    #[derive(Clone, Copy)]
    struct Given {
        is_whole: bool,
        are_together: bool,
        /// Of an adapter, for a shader.
        n_buffers: usize,
    }

    const ALL: Given = Given {
        is_whole: true,
        are_together: true,
        n_buffers: 9,
    };

    impl Places for (&Plan, &DecoderModel, Given) {
        fn is_whole(&self, _: WeightId) -> bool {
            self.2.is_whole
        }

        fn are_together(&self, first: WeightId, second: WeightId) -> bool {
            self.2.are_together && first.0 < second.0
        }

        fn width(&self, weight: WeightId) -> usize {
            self.1.weights.get(weight).n_cols
        }

        fn may_normalise(&self, kernel: &Kernel, width: usize) -> bool {
            matvec::may_normalise(kernel, width, self.2.n_buffers)
        }
    }

    /// What the steps of the second layer are: the names of those that a kernel at a step computes.
    fn second_layer(int8_rows: usize, given: Given) -> Vec<String> {
        second_layer_of(tiny::gguf(WeightType::Q8_0, None), int8_rows, given)
    }

    fn second_layer_of(gguf: Gguf, int8_rows: usize, given: Given) -> Vec<String> {
        let gguf = Arc::new(gguf);
        let model = DecoderModel::from_gguf(gguf, WeightStorage::Native).unwrap();
        let plan = decoder_plan(&model, 8, 1).unwrap();
        let plan = plan.with_int8_activations(&model.weights, int8_rows);
        let parts = parts(&plan, &(&plan, &model, given));
        let name = |&step: &usize| {
            plan.steps[step]
                .name
                .trim_start_matches("blk.1.")
                .to_owned()
        };
        let text = |part: &Part| match part {
            Part::First(_, steps) => Some(steps.iter().map(name).collect::<Vec<_>>().join(" ")),
            Part::Alone | Part::Later => None,
        };
        let in_layer = |index: &usize| plan.steps[*index].name.starts_with("blk.1.");
        let layer = (0..parts.len()).filter(in_layer);
        layer.filter_map(|index| text(&parts[index])).collect()
    }

    #[test]
    fn a_layer_comes_to_four_kernels_beside_attention_and_two_products() {
        assert_eq!(
            second_layer(4, ALL),
            [
                "attn_norm attn_q Qcur",
                "attn_k Kcur kv_cache",
                "Vcur kv_cache",
                "ffn_norm ffn_gate ffn_up ffn_gated",
            ]
        );
    }

    #[test]
    fn norms_stay_alone_where_a_kernel_cannot_take_them() {
        let alone = [
            "attn_q Qcur",
            "attn_k Kcur kv_cache",
            "Vcur kv_cache",
            "ffn_gate ffn_up ffn_gated",
        ];
        let no_norms = Given {
            n_buffers: 7,
            ..ALL
        };
        assert_eq!(second_layer(4, no_norms), alone);
        // What every adapter of WebGPU has is enough for the gated block.
        let least = Given {
            n_buffers: 8,
            ..ALL
        };
        let [heads @ .., _] = alone;
        let mut gated_alone = heads.to_vec();
        gated_alone.push("ffn_norm ffn_gate ffn_up ffn_gated");
        assert_eq!(second_layer(4, least), gated_alone);
        assert_eq!(second_layer(0, ALL), alone); // products of f32 rows
        let apart = Given {
            are_together: false,
            ..ALL
        };
        // The norm of the feed-forward block stays with its two products.
        assert_eq!(second_layer(4, apart)[0], "attn_norm attn_q Qcur");
        assert_eq!(second_layer(4, apart).len(), 3);
    }

    #[test]
    fn nothing_is_fused_where_weights_are_in_several_shards() {
        let sharded = Given {
            is_whole: false,
            ..ALL
        };
        assert_eq!(second_layer(4, sharded), [""; 0]);
    }

    #[test]
    fn both_products_of_experts_and_what_gates_them_are_one_kernel() {
        let gated = "ffn_moe_gate ffn_moe_up ffn_moe_gated".to_owned();
        for name in ["gpt-oss", "qwen3moe"] {
            let Some(folder) = shared("arch") else { return };
            let layer = |given| {
                let gguf = Gguf::open(folder.join(format!("{name}.gguf"))).unwrap();
                second_layer_of(gguf, 4, given)
            };
            assert!(layer(ALL).contains(&gated), "{name}: {:?}", layer(ALL));
            let apart = Given {
                are_together: false,
                ..ALL
            };
            assert!(!layer(apart).contains(&gated), "{name}");
            let sharded = Given {
                is_whole: false,
                ..ALL
            };
            assert_eq!(layer(sharded), [""; 0], "{name}");
        }
    }
}
