//! Projections of the same rows as one group.

use super::{Finder, Group, Part, Projection};
use crate::kernels::matvec_heads;
use crate::model::WeightId;
use crate::plan::{Op, Step};
use std::ops::Range;

impl Finder<'_> {
    /// Makes projections one group that follow each other and take the same rows, where one kernel can compute
    /// them.
    pub(super) fn join(&self, parts: &mut [Part]) {
        let src = |step: usize| match self.plan.steps[step].op {
            Op::MatMul { src, .. } => Some(src),
            _ => None,
        };
        let mut start = 0;
        while start < parts.len() {
            let next = (start + 1..parts.len()).find(|&step| src(step) != src(start));
            let end = next.unwrap_or(parts.len());
            if src(start).is_some() {
                self.join_of(start..end, parts);
            }
            start = end;
        }
    }

    /// Joins what can be joined of some products of the same rows.
    fn join_of(&self, products: Range<usize>, parts: &mut [Part]) {
        let mut groups: Vec<(Vec<usize>, Vec<Projection>)> = Vec::new();
        for step in products {
            let Some((steps, projection)) = self.joinable(step, &parts[step]) else {
                continue;
            };
            let group = groups.iter_mut().find(|(others, projections)| {
                self.joins(others[0]..step, projections, &projection)
            });
            match group {
                Some((others, projections)) => {
                    others.extend(steps);
                    projections.push(projection);
                }
                None => groups.push((steps, vec![projection])),
            }
        }
        for (mut steps, projections) in groups {
            if projections.len() == 1 {
                continue;
            }
            steps.sort_unstable();
            steps.dedup();
            for &step in &steps {
                parts[step] = Part::Later;
            }
            let first = steps[0];
            parts[first] = Part::First(Group::of_heads(projections), steps);
        }
    }

    /// A projection that is alone so far, and its steps.
    fn joinable(&self, step: usize, part: &Part) -> Option<(Vec<usize>, Projection)> {
        match part {
            Part::First(Group::Heads(heads), steps) => match heads.projections[..] {
                [projection] => Some((steps.clone(), projection)),
                _ => None,
            },
            // A sum behind a product is the product's own kernel's.
            Part::Alone => match self.plan.steps.get(step + 1).map(|step| &step.op) {
                Some(Op::Add { .. }) => None,
                _ => self.unrotated(step),
            },
            Part::First(Group::Gated(_) | Group::ExpertGated(_), _) | Part::Later => None,
        }
    }

    /// Whether a projection can be computed with others, of the same rows, some steps earlier.
    fn joins(&self, earlier: Range<usize>, others: &[Projection], projection: &Projection) -> bool {
        let product = &projection.product;
        let ty = |projection: &Projection| self.places.weight_type(projection.product.weight);
        let all = || others.iter().chain([projection]);
        let turns_alike = |other: &Projection| match (projection.rope, other.rope) {
            (Some(own), Some(other)) => (own.table, own.head_dim) == (other.table, other.head_dim),
            _ => true,
        };
        let weights: Vec<WeightId> = all().flat_map(Projection::weights).collect();
        let writes_src = |step: &Step| step.op.dst() == Some(product.src);
        let mut written = std::iter::once(product.dst).chain(projection.rope.map(|rope| rope.dst));
        others.len() < matvec_heads::MOST_PROJECTIONS
            && others.iter().all(|other| {
                ty(other) == ty(projection)
                    && other.product.int8 == product.int8
                    && turns_alike(other)
            })
            && self.places.are_together(&weights)
            && !self.plan.steps[earlier.clone()].iter().any(writes_src)
            && written
                .all(|buffer| buffer != product.src && self.is_untouched(earlier.clone(), buffer))
    }
}
