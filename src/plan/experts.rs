//! How a mixture of experts chooses (arXiv:1701.06538), as `docs/ARCHITECTURE.md` says.

/// Makes scores of a router's logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    /// Softmax over all experts.
    Softmax,
    /// The sigmoid of each logit (arXiv:2412.19437, section 2.1.2).
    Sigmoid,
}

/// Experts in groups of equal size, of which only those of the best groups may be chosen: a group is worth the
/// sum of its two best scores (arXiv:2412.19437, section 2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGroups {
    /// All groups: a divisor of the number of experts.
    pub n_group: usize,
    /// Groups that experts are chosen from.
    pub n_used: usize,
}

/// What is wrong with a choice of `n_chosen` from `n_expert` experts, if anything.
pub(super) fn choice(
    n_expert: usize,
    n_chosen: usize,
    groups: Option<ExpertGroups>,
) -> Option<String> {
    let ExpertGroups { n_group, n_used } = groups.unwrap_or(ExpertGroups {
        n_group: 1,
        n_used: 1,
    });
    if n_group == 0 || !n_expert.is_multiple_of(n_group) || !(1..=n_group).contains(&n_used) {
        return Some(format!(
            "{n_used} of {n_group} groups of {n_expert} experts"
        ));
    }
    let n_eligible = n_expert / n_group * n_used;
    (!(1..=n_eligible).contains(&n_chosen))
        .then(|| format!("{n_chosen} chosen of {n_eligible} experts"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Gguf;
    use crate::model::{DecoderModel, WeightStorage, decoder_plan};
    use crate::plan::check::check;
    use crate::plan::{Extent, Op, Plan};
    use crate::support::shared;
    use std::sync::Arc;

    fn refused(step: &str, damage: impl Fn(&mut Plan, usize)) {
        let Some(folder) = shared("arch") else { return };
        let gguf = Arc::new(Gguf::open(folder.join("gpt-oss.gguf")).unwrap());
        let model = DecoderModel::from_gguf(gguf, WeightStorage::Native).unwrap();
        let mut plan = decoder_plan(&model, 8, 2).unwrap();
        let kv = model.spec.kv_layers();
        assert!(check(&plan, &model.weights, &kv).is_ok());
        let name = format!("blk.0.{step}");
        let index = plan.steps.iter().position(|s| s.name == name).unwrap();
        damage(&mut plan, index);
        let error = check(&plan, &model.weights, &kv).unwrap_err().to_string();
        assert!(error.contains(&name), "{error}");
    }

    fn dst(plan: &Plan, index: usize) -> usize {
        plan.steps[index].op.dst().unwrap().0
    }

    #[test]
    fn steps_of_experts_with_wrong_shapes_are_refused() {
        // More experts for a token than there are.
        refused("ffn_moe_topk", |plan, index| {
            let dst = dst(plan, index);
            plan.buffers[dst].width = 6;
        });
        refused("ffn_moe_topk", |plan, index| {
            if let Op::ChooseExperts { groups, .. } = &mut plan.steps[index].op {
                *groups = Some(ExpertGroups {
                    n_group: 2, // of five experts
                    n_used: 1,
                });
            }
        });
        refused("ffn_moe_weights", |plan, index| {
            let dst = dst(plan, index);
            plan.buffers[dst].width = 3;
        });
        refused("ffn_moe_gate", |plan, index| {
            if let Op::ExpertMatMul { n_expert, .. } = &mut plan.steps[index].op {
                *n_expert = 4;
            }
        });
        refused("ffn_moe_gate", |plan, index| {
            let dst = dst(plan, index);
            plan.buffers[dst].extent = Extent::Tokens;
        });
        refused("ffn_moe_down", |plan, index| {
            if let Op::ExpertMatMul { bias, weight, .. } = &mut plan.steps[index].op {
                *bias = Some(*weight);
            }
        });
        refused("ffn_moe_out", |plan, index| {
            if let Op::WeightedSum { src, dst, .. } = &mut plan.steps[index].op {
                *src = *dst;
            }
        });
        refused("kqv_out", |plan, index| {
            let norm = plan.steps.iter().find_map(|step| match step.op {
                Op::RmsNorm { weight, .. } => weight,
                _ => None,
            });
            if let Op::Attention { sinks, .. } = &mut plan.steps[index].op {
                *sinks = norm;
            }
        });
    }

    #[test]
    fn choices_that_cannot_be_made_are_refused() {
        let groups = |n_group, n_used| Some(ExpertGroups { n_group, n_used });
        assert_eq!(choice(8, 8, None), None);
        assert_eq!(choice(8, 4, groups(4, 2)), None);
        for (n_expert, n_chosen, groups) in [
            (8, 9, None),
            (8, 0, None),
            (8, 5, groups(4, 2)),
            (8, 1, groups(3, 1)),
            (8, 1, groups(4, 5)),
            (8, 1, groups(0, 0)),
        ] {
            let what = choice(n_expert, n_chosen, groups);
            assert!(what.is_some(), "{n_chosen} of {n_expert}, {groups:?}");
        }
    }
}
