//! Texts made into vectors by an encoder.

use crate::device::Executor;
use crate::device::sentinel::check_layer;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::model::Pooling;
use crate::plan::{Batch, Outputs};

/// How a text becomes a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbedOptions {
    /// How the vectors of its tokens become one; as the file says where this is `None`.
    pub pooling: Option<Pooling>,
    /// Whether each vector is divided by its length, so that the dot product of two is the cosine of their angle.
    pub normalise: bool,
    /// Whether special tokens written out in the text (`[SEP]`) count as such.
    pub parse_special: bool,
}

impl Default for EmbedOptions {
    /// The file's pooling, vectors of length 1, special tokens as plain text.
    fn default() -> Self {
        EmbedOptions {
            pooling: None,
            normalise: true,
            parse_special: false,
        }
    }
}

/// Makes vectors of texts, one after the other, on the engine's device. An encoder keeps nothing of a text for the
/// next: what a vector is depends on its text alone.
///
/// ```no_run
/// let engine = trueshot::Engine::load("bge-small-en-v1.5.gguf")?;
/// let mut embedder = engine.embedder()?;
/// let [a, b] = ["A cat sat on the mat.", "A kitten rests on a rug."].map(|text| embedder.embed(text));
/// let cosine: f32 = a?.iter().zip(&b?).map(|(a, b)| a * b).sum();
/// # Ok::<(), trueshot::Error>(())
/// ```
pub struct Embedder {
    engine: Engine,
    executor: Box<dyn Executor>,
    /// Of the last text, `[n_tokens, hidden_size]`.
    rows: Vec<f32>,
}

impl Embedder {
    pub(crate) fn new(engine: Engine, executor: Box<dyn Executor>) -> Self {
        Embedder {
            engine,
            executor,
            rows: Vec::new(),
        }
    }

    /// The engine this embedder belongs to.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The vector of a text, `[hidden_size] f32` and of length 1, by the default [`EmbedOptions`]. Of a file that
    /// names no pooling it is `[n_tokens, hidden_size]`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the text cannot be encoded, else as [`Embedder::embed_tokens`].
    pub fn embed(&mut self, text: &str) -> Result<Vec<f32>> {
        self.embed_with(text, &EmbedOptions::default())
    }

    /// As [`Embedder::embed`], with options.
    ///
    /// # Errors
    /// As [`Embedder::embed`].
    pub fn embed_with(&mut self, text: &str, options: &EmbedOptions) -> Result<Vec<f32>> {
        let tokenizer = self.engine.tokenizer();
        let tokens = tokenizer.encode(text, true, options.parse_special)?;
        self.embed_tokens(&tokens, options)
    }

    /// As [`Embedder::embed_with`], from token ids, which are taken as they are: special tokens that the model wants
    /// around a text (`[CLS]`, `[SEP]`) must be among them. By [`Pooling::None`] the vectors of all tokens,
    /// `[n_tokens, hidden_size] f32`, each by itself of length 1 where that is asked for; else `[hidden_size] f32`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for no tokens, one beyond the vocabulary, or more than the
    /// [context](Engine::context_length) holds: an encoder sees a text as a whole, so that it cannot be cut into
    /// batches. [`Error::WrongResult`] for values that cannot be right, and those of the device.
    pub fn embed_tokens(&mut self, tokens: &[u32], options: &EmbedOptions) -> Result<Vec<f32>> {
        let spec = self.engine.spec();
        let (width, of_file) = (spec.hidden_size, spec.pooling.unwrap_or(Pooling::None));
        self.run(tokens)?;
        let mut vectors = pooled(&self.rows, width, options.pooling.unwrap_or(of_file));
        if options.normalise {
            vectors.chunks_exact_mut(width).for_each(normalise);
        }
        Ok(vectors)
    }

    /// Runs a text; its rows are `rows`.
    fn run(&mut self, tokens: &[u32]) -> Result<()> {
        let capacity = self
            .engine
            .context_length()
            .min(self.engine.plan().max_rows);
        if !(1..=capacity).contains(&tokens.len()) {
            let message = format!(
                "{} tokens, expected 1 to {capacity}, the context: an encoder sees a text as a whole",
                tokens.len()
            );
            return Err(Error::InvalidArgument {
                name: "tokens",
                message,
            });
        }
        self.engine.check_tokens(tokens)?;
        let batch = Batch {
            tokens,
            position: 0,
            outputs: Outputs::All,
        };
        self.executor.run(&batch, &mut self.rows, None)?;
        let plan = self.engine.plan();
        let step = plan.steps.last().map_or("", |step| step.name.as_str());
        check_layer(step, &self.rows, plan.buffer(plan.logits).width, 0)
    }

    /// Gives back what runs the plan.
    pub(crate) fn into_executor(self) -> Box<dyn Executor> {
        self.executor
    }
}

/// What `rows`, `[n_tokens, width]`, come to: one vector, or all of them.
fn pooled(rows: &[f32], width: usize, pooling: Pooling) -> Vec<f32> {
    let last = rows.len().saturating_sub(width);
    match pooling {
        Pooling::None => rows.to_vec(),
        Pooling::Cls => rows[..width].to_vec(),
        Pooling::Last => rows[last..].to_vec(),
        Pooling::Mean => {
            let n = (rows.len() / width) as f64;
            let column = |column: usize| rows[column..].iter().step_by(width);
            let sum = |at| column(at).map(|&x| f64::from(x)).sum::<f64>();
            (0..width).map(|at| (sum(at) / n) as f32).collect()
        }
    }
}

/// Makes a vector as long as 1; one of zeros stays.
fn normalise(vector: &mut [f32]) {
    let squares: f64 = vector.iter().map(|&x| f64::from(x).powi(2)).sum();
    if squares > 0.0 {
        let factor = 1.0 / squares.sqrt();
        for x in vector {
            *x = (f64::from(*x) * factor) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: [f32; 6] = [1.0, 2.0, 3.0, -4.0, 5.0, 8.0];

    #[test]
    fn vectors_of_tokens_become_one_as_the_pooling_says() {
        assert_eq!(pooled(&ROWS, 2, Pooling::None), ROWS);
        assert_eq!(pooled(&ROWS, 2, Pooling::Mean), [3.0, 2.0]);
        assert_eq!(pooled(&ROWS, 2, Pooling::Cls), [1.0, 2.0]);
        assert_eq!(pooled(&ROWS, 2, Pooling::Last), [5.0, 8.0]);
    }

    #[test]
    fn vectors_of_any_length_are_made_as_long_as_one() {
        for scale in [1e-30, 1.0, 1e30] {
            let mut vector = [3.0 * scale, -4.0 * scale];
            normalise(&mut vector);
            assert_eq!(vector, [0.6, -0.8]);
        }
        let mut zeros = [0.0; 2];
        normalise(&mut zeros);
        assert_eq!(zeros, [0.0; 2]);
    }
}
