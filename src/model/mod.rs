//! What a GGUF file says of its model: the [`DecoderSpec`], its weights, and the forward pass.

mod architectures;
mod decoder;
mod encoder;
mod expert_spec;
mod gemma4;
mod hybrid;
mod hyperparameters;
mod latent;
mod layers;
mod lora;
mod numbers;
mod rope;
mod rope_spec;
mod spec;
#[cfg(test)]
mod tests;
mod views;
mod weights;

pub use architectures::architectures;
pub use encoder::Pooling;
pub use expert_spec::ExpertSpec;
pub use hybrid::RecurrentSpec;
pub use latent::LatentSpec;
pub use rope::{RopeDivisors, RopeScaling, RopeSpec};
pub use spec::{DecoderSpec, LayerSpec};
pub use weights::{WeightId, WeightStorage};

pub(crate) use architectures::encoders;
pub(crate) use decoder::{DecoderModel, decoder_plan};
pub(crate) use lora::Lora;
pub(crate) use weights::{Weight, Weights};
