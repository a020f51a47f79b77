//! Products with weight matrices, one line a kernel: `cargo bench --bench kernels -- [types | shapes] [TYPE]`.
//!
//! `types`: every weight type, one row (from memory) and 512 rows, 14336x4096. `shapes`: the matrices of a
//! small and of a large model, 512 rows, in Q4_0 or TYPE. Without a word both.

use trueshot::GpuChoice;
use trueshot::gguf::WeightType;
use trueshot::measure::{Bench, Product};

/// Rows and columns of the weights of SmolLM2-135M and of Llama-3-8B.
const SHAPES: [[usize; 2]; 8] = [
    [192, 576],
    [576, 576],
    [1536, 576],
    [576, 1536],
    [1024, 4096],
    [4096, 4096],
    [14336, 4096],
    [4096, 14336],
];

fn main() -> trueshot::Result<()> {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let has = |word: &str| words.iter().any(|given| given.eq_ignore_ascii_case(word));
    let types: Vec<WeightType> = WeightType::ALL
        .into_iter()
        .filter(|ty| has(&format!("{ty:?}")))
        .collect();
    let both = !has("types") && !has("shapes");

    let bench = Bench::new(&GpuChoice::Best)?;
    println!("{} ({})", bench.info().name, bench.info().driver);
    if both || has("types") {
        for weight in WeightType::ALL {
            if types.is_empty() || types.contains(&weight) {
                for n_rows in [1, 512] {
                    measure(&bench, weight, n_rows, [14336, 4096])?;
                }
            }
        }
    }
    if both || has("shapes") {
        for shape in SHAPES {
            let weight = types.first().copied().unwrap_or(WeightType::Q4_0);
            measure(&bench, weight, 512, shape)?;
        }
    }
    Ok(())
}

fn measure(
    bench: &Bench,
    weight: WeightType,
    n_rows: usize,
    [n_out, n_cols]: [usize; 2],
) -> trueshot::Result<()> {
    let product = Product {
        weight,
        n_rows,
        n_out,
        n_cols,
    };
    for found in bench.product(&product)? {
        let seconds = found.time.as_secs_f64();
        println!(
            "{:<18} {:<5} {n_rows:>3} x {n_out:>5} x {n_cols:>5}: {:>9.1} us {:>7.0} GB/s {:>7.1} TFLOP/s",
            found.kernel,
            format!("{weight:?}"),
            seconds * 1e6,
            found.weight_bytes as f64 / seconds / 1e9,
            2.0 * (n_rows * n_out * n_cols) as f64 / seconds / 1e12,
        );
    }
    Ok(())
}
