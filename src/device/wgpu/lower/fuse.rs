//! Which steps of a plan one kernel computes together, in batches of few rows. The kernels write what
//! each step would have written, so that the plan stays what is observed and verified.

mod experts;
mod join;
#[cfg(test)]
mod tests;

pub(super) use self::experts::ExpertGated;

use crate::gguf::WeightType;
use crate::kernels::{Kernel, expert_gated, matvec_gated, matvec_heads};
use crate::model::WeightId;
use crate::plan::{Activation, BufferId, Extent, Op, Plan, RopeTableId};
use std::collections::BTreeSet;
use std::ops::Range;

/// Steps that one kernel computes together.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Group {
    Heads(Heads),
    Gated(Gated),
    ExpertGated(ExpertGated),
}

/// Projections of the same rows by weights of one type, up to [`matvec_heads::MOST_PROJECTIONS`].
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Heads {
    pub(super) projections: Vec<Projection>,
    pub(super) norm: Option<Norm>,
}

/// A projection to heads, its rotation, and its part of a store in the cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Projection {
    pub(super) product: Product,
    pub(super) bias: Option<WeightId>,
    pub(super) rope: Option<Rope>,
    /// The layer, and 0 for its keys or 1 for its values.
    pub(super) cache: Option<(usize, usize)>,
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

    /// Whether one binding holds all of these weights.
    fn are_together(&self, weights: &[WeightId]) -> bool;

    /// The type of a weight's elements.
    fn weight_type(&self, weight: WeightId) -> WeightType;

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
                if let Some((steps, projection)) = finder.rotated(index) {
                    let first = steps[0];
                    parts[first] = Part::First(Group::of_heads(vec![projection]), steps);
                    parts[index] = Part::Later;
                }
            }
            Op::StoreKv { k, v, layer } if k != v => {
                let found = [k, v].map(|buffer| finder.stored(index, buffer));
                if let [Some(keys), Some(values)] = found {
                    for (part, (mut steps, projection)) in [keys, values].into_iter().enumerate() {
                        let cache = Some((layer, part));
                        let projection = Projection {
                            cache,
                            ..projection
                        };
                        steps.push(index);
                        let first = steps[0];
                        parts[first] = Part::First(Group::of_heads(vec![projection]), steps);
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
    finder.join(&mut parts);
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

impl Projection {
    /// Its results, in order. All but the last are kept for none but those who look on.
    pub(super) fn kept(&self) -> Vec<BufferId> {
        let mut results = vec![self.product.dst];
        results.extend(self.rope.map(|rope| rope.dst));
        if self.cache.is_none() {
            results.pop();
        }
        results
    }

    /// Its matrix, then its bias.
    pub(super) fn weights(&self) -> impl Iterator<Item = WeightId> {
        std::iter::once(self.product.weight).chain(self.bias)
    }
}

impl Group {
    fn of_heads(projections: Vec<Projection>) -> Group {
        let norm = None;
        Group::Heads(Heads { projections, norm })
    }

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
            Group::Heads(heads) => Some((heads.projections[0].product, &mut heads.norm)),
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
    fn rotated(&self, step: usize) -> Option<(Vec<usize>, Projection)> {
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
        let rope = Rope {
            table,
            head_dim,
            dst,
        };
        let projection = Projection {
            product,
            bias,
            rope: Some(rope),
            cache: None,
        };
        let steps = vec![of_product, step];
        let fits = matvec_heads::fits(head_dim, n_dims)
            && ![src, product.src].contains(&dst)
            && self.is_untouched(of_product..step, dst)
            && is_read_within(self.plan, &steps, of_product, src)
            && self.has_bias_near(&projection);
        fits.then_some((steps, projection))
    }

    /// The product whose result, turned or not, a store in the cache takes.
    fn stored(&self, store: usize, buffer: BufferId) -> Option<(Vec<usize>, Projection)> {
        let writer = self.writer(store, buffer)?;
        let (steps, projection) = match self.plan.steps[writer].op {
            Op::Rope { .. } => self.rotated(writer)?,
            _ => self.unrotated(writer)?,
        };
        let reads_cache = |step: usize| matches!(self.plan.steps[step].op, Op::Attention { .. });
        let fits = !(steps[0]..store).any(reads_cache)
            && is_read_within(self.plan, &[store], writer, buffer);
        fits.then_some((steps, projection))
    }

    /// A product with nothing behind it.
    fn unrotated(&self, step: usize) -> Option<(Vec<usize>, Projection)> {
        let (product, bias) = self.product(step)?;
        let (rope, cache) = (None, None);
        let projection = Projection {
            product,
            bias,
            rope,
            cache,
        };
        let fits = matvec_heads::fits(self.plan.buffer(product.dst).width, 0)
            && product.src != product.dst
            && self.has_bias_near(&projection);
        fits.then_some((vec![step], projection))
    }

    fn has_bias_near(&self, projection: &Projection) -> bool {
        let weights: Vec<WeightId> = projection.weights().collect();
        self.places.are_together(&weights)
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
            && self.places.weight_type(gate.weight) == self.places.weight_type(up.weight)
            && self.places.are_together(&[gate.weight, up.weight]);
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
            weight: Some(weight),
            eps,
            dst,
            ..
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
