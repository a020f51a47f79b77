// The batch, which changes with every run; all else that a kernel is told stands in its `Params`.
struct Batch {
    n_rows: u32,    // rows of token-wide buffers
    position: u32,  // position of the first row
    n_outputs: u32, // rows of output-wide buffers: the last ones of the batch
    random: u32,    // for the choice of the next token
}

@group(0) @binding(0) var<uniform> batch: Batch;

