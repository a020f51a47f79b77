//! Kernels that carry a state from batch to batch, and those beside them.

mod beside;
mod conv;
mod delta;
mod scan;

use crate::kernels::BatchParams;

fn batch(n_rows: usize, position: usize) -> BatchParams {
    BatchParams {
        n_rows: n_rows as u32,
        position: position as u32,
        n_outputs: 0,
        random: 0,
    }
}

/// What a kernel or its twin makes of a case.
struct Made {
    dst: Vec<f32>,
    state: Vec<f32>,
}

/// The state that a batch at a position begins with.
fn given(position: usize, state: &[f32]) -> Vec<f32> {
    match position {
        0 => vec![0.0; state.len()],
        _ => state.to_vec(),
    }
}
