//! Attention of few rows deep in the context, where cooperative matrices do it.

use super::steps::Lowering;
use super::{Draft, whole};
use crate::kernels::Variant;
use crate::kernels::attention::Shape;
use crate::kernels::attention_deep::{self, KERNEL, Params, Tile};
use crate::plan::Op;

impl<'a> Lowering<'a> {
    /// The dispatch of the splits of the keys, and how many splits there are.
    pub(super) fn deep_attention(
        &self,
        step: usize,
        op: &Op,
        shape: &Shape,
        tile: Tile,
    ) -> Option<(Draft<'a>, usize)> {
        let Op::Attention { q, layer, dst, .. } = *op else {
            return None;
        };
        let n_splits = attention_deep::splits(tile, shape);
        let params = Params::new(shape, n_splits, false);
        let [keys, values] = self.buffers.caches[layer].each_ref().map(whole);
        let partials = whole(self.buffers.partials.as_ref()?);
        let storage = vec![whole(self.buffers.activation(q)), keys, values, partials];
        let grid = move |params: &_, n_rows| attention_deep::grid(tile, params, n_rows);
        let draft = self.plain(step, dst, &KERNEL, params, storage, grid);
        let draft = Draft {
            variant: Variant {
                deep_tile: Some(tile),
                ..draft.variant
            },
            ..draft
        };
        Some((draft.for_few(self.choice), n_splits))
    }
}
