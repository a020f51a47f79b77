//! Which kernel a step gets: by the rows of the batch, and by what the adapter can do.

use crate::device::{Activations, DeviceInfo, DeviceKind};
use crate::gguf::WeightType;
use crate::kernels::Variant;
use crate::kv_cache::KvType;

/// Up to this many rows each row reads the weights for itself; more share them in tiles.
pub(super) const FEW_ROWS: usize = 4;

/// The batches that a dispatch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rows {
    Any,
    Few,
    Many,
}

impl Rows {
    pub(super) fn covers(self, n_rows: usize) -> bool {
        match self {
            Rows::Any => true,
            Rows::Few => n_rows <= FEW_ROWS,
            Rows::Many => n_rows > FEW_ROWS,
        }
    }
}

/// The most rows that round their activations to int8.
pub(super) fn int8_rows(activations: Activations, info: &DeviceInfo) -> usize {
    let is_int8 = match activations {
        Activations::F32 => false,
        Activations::Int8 => true,
        // Metal has no packed int8 dot product, and software gains nothing from it.
        Activations::Auto => info.backend != "metal" && info.kind != DeviceKind::SoftwareGpu,
    };
    if is_int8 { FEW_ROWS } else { 0 }
}

/// What every kernel of an executor is compiled for, but for the type of its weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) kv: KvType,
    pub(super) subgroups: bool,
}

impl Choice {
    pub(super) fn with_weight(self, weight: WeightType) -> Variant {
        Variant {
            weight,
            kv: self.kv,
            subgroups: self.subgroups,
        }
    }

    /// The variant of a kernel that reads no matrix; the weight type is not looked at.
    pub(super) fn plain(self) -> Variant {
        self.with_weight(WeightType::F32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_of_rows_has_one_kernel() {
        for n_rows in 1..=513 {
            let covering = [Rows::Few, Rows::Many]
                .iter()
                .filter(|rows| rows.covers(n_rows));
            assert_eq!(covering.count(), 1, "{n_rows} rows");
        }
    }
}
