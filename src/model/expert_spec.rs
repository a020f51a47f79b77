//! The hyper-parameters of mixtures of experts.

use super::architectures::{Architecture, Experts, SharedExpert};
use super::hyperparameters::Hyperparameters;
use super::spec::{MAX_COUNT, in_range};
use crate::error::Result;
use crate::plan::{ExpertGroups, Gating};

/// The experts of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertSpec {
    /// Experts that there are.
    pub n_expert: usize,
    /// Experts that each token has.
    pub n_chosen: usize,
    /// Width of an expert.
    pub intermediate_size: usize,
    /// Width of the expert that all tokens have.
    pub shared_size: Option<usize>,
    /// Makes scores of the router's logits.
    pub gating: Gating,
    /// The groups that experts are chosen from.
    pub groups: Option<ExpertGroups>,
    /// Whether the scores of the chosen experts are divided by their sum.
    pub normalised: bool,
    /// Factor on their weights.
    pub scale: f32,
    /// Whether weights multiply what an expert takes in, not what it gives.
    pub weighs_inputs: bool,
}

/// The most experts that a token may have.
const MAX_CHOSEN: usize = 64;

/// The most experts that are chosen from: kernels hold the scores of a token in workgroup memory.
const MAX_EXPERTS: usize = 1024;
const SHARED_SIZE: &str = "expert_shared_feed_forward_length";

/// The experts of each layer, with the widths of dense ones for what the file does not state.
pub(super) fn read(
    architecture: &Architecture,
    keys: &Hyperparameters<'_>,
    dense_sizes: &[usize],
) -> Result<Vec<Option<ExpertSpec>>> {
    let n_layer = dense_sizes.len();
    let Some(experts) = architecture.experts else {
        return Ok(vec![None; n_layer]);
    };
    let Some(n_expert) = keys.usize("expert_count")?.filter(|&n| n > 0) else {
        // Dense models of these families state them too (Granite 4).
        for unused in ["expert_used_count", SHARED_SIZE] {
            keys.usize(unused)?;
        }
        return Ok(vec![None; n_layer]);
    };
    in_range(keys, "expert_count", Some(n_expert), MAX_EXPERTS)?;
    let groups = match experts.is_stated {
        true => groups(keys, n_expert)?,
        false => None,
    };
    let eligible = groups.map_or(n_expert, |groups| n_expert / groups.n_group * groups.n_used);
    let most_chosen = eligible.min(MAX_CHOSEN);
    let n_chosen = in_range(keys, "expert_used_count", None, most_chosen)?;
    let stated_size = keys.usize("expert_feed_forward_length")?;
    let shared = shared_size(&experts, keys, stated_size)?;
    let (gating, normalised, scale) = form(&experts, keys)?;
    let (n_dense, step) = match experts.has_dense_layers {
        true => dense_layers(keys)?,
        false => (0, 1),
    };
    let layer = |(layer, &dense_size): (usize, &usize)| {
        if layer < n_dense || !(layer + 1).is_multiple_of(step) {
            return Ok(None);
        }
        let size = stated_size.unwrap_or(dense_size);
        in_range(keys, "expert_feed_forward_length", Some(size), MAX_COUNT)?;
        Ok(Some(ExpertSpec {
            n_expert,
            n_chosen,
            intermediate_size: size,
            shared_size: match (experts.shared, shared) {
                (SharedExpert::None, _) => None,
                (SharedExpert::Plain, shared) => shared,
                (SharedExpert::AsExpert, _) => Some(size),
                (SharedExpert::Gated, shared) => {
                    let size = Some(shared.unwrap_or(dense_size));
                    Some(in_range(keys, SHARED_SIZE, size, MAX_COUNT)?)
                }
            },
            gating,
            groups,
            normalised,
            scale,
            weighs_inputs: experts.weighs_inputs,
        }))
    };
    dense_sizes.iter().enumerate().map(layer).collect()
}

/// How many layers in front are dense, and that only each so-many-th layer has experts.
fn dense_layers(keys: &Hyperparameters<'_>) -> Result<(usize, usize)> {
    const STEP: &str = "interleave_moe_layer_step";
    let n_dense = keys.usize("leading_dense_block_count")?.unwrap_or(0);
    match keys.usize(STEP)? {
        Some(0) => Err(keys.invalid(STEP, "0, expected at least 1")),
        step => Ok((n_dense, step.unwrap_or(1))),
    }
}

fn groups(keys: &Hyperparameters<'_>, n_expert: usize) -> Result<Option<ExpertGroups>> {
    let n_group = keys.usize("expert_group_count")?.unwrap_or(0);
    let n_used = keys.usize("expert_group_used_count")?.unwrap_or(0);
    if n_group <= 1 {
        return Ok(None);
    }
    if !n_expert.is_multiple_of(n_group) || n_expert / n_group < 2 {
        let what = format!("{n_group}, expected equal groups of at least 2 of {n_expert} experts");
        return Err(keys.invalid("expert_group_count", what));
    }
    in_range(keys, "expert_group_used_count", Some(n_used), n_group)?;
    Ok(Some(ExpertGroups { n_group, n_used }))
}

/// The width of the shared expert, as far as the file states it.
fn shared_size(
    experts: &Experts,
    keys: &Hyperparameters<'_>,
    expert_size: Option<usize>,
) -> Result<Option<usize>> {
    if matches!(experts.shared, SharedExpert::None | SharedExpert::AsExpert) {
        return Ok(None);
    }
    let n_shared = keys.usize("expert_shared_count")?.unwrap_or(0);
    let size = match keys.usize(SHARED_SIZE)?.filter(|&size| size > 0) {
        Some(size) => Some(size),
        None if n_shared > 0 => expert_size.and_then(|size| size.checked_mul(n_shared)),
        None => None,
    };
    let checked = size.map(|size| in_range(keys, SHARED_SIZE, Some(size), MAX_COUNT));
    checked.transpose()
}

/// How scores become weights: the gating, whether they are normalised, and the factor.
fn form(experts: &Experts, keys: &Hyperparameters<'_>) -> Result<(Gating, bool, f32)> {
    const GATING: &str = "expert_gating_func";
    if !experts.is_stated {
        return Ok((experts.gating, experts.normalised, 1.0));
    }
    let gating = match keys.usize(GATING)? {
        None | Some(0) => experts.gating,
        Some(1) => Gating::Softmax,
        Some(2) => Gating::Sigmoid,
        Some(other) => return Err(keys.invalid(GATING, format!("{other}, expected 1 or 2"))),
    };
    let normalised = keys
        .bool("expert_weights_norm")?
        .unwrap_or(experts.normalised);
    let scale = keys
        .f32("expert_weights_scale")?
        .filter(|&scale| scale != 0.0);
    Ok((gating, normalised, scale.unwrap_or(1.0)))
}
