//! Products with weight matrices: `cargo bench --bench kernels -- [types | shapes] [TYPE]`.
//!
//! `types`: every weight type, 14336x4096. `shapes`: the matrices of three models, in Q4_0 or TYPE. Without a word
//! both. One row and 512 rows, by every kernel, and few rows by all teams; `*` marks what a session runs,
//! and of the types says what is wanted of it and whether it is reached.

use trueshot::GpuChoice;
use trueshot::gguf::WeightType;
use trueshot::measure::{Bench, Measurement, Product};

/// Rows and columns of the weights of SmolLM2-135M, of Llama-3.2-1B and TinyLlama-1.1B, and of Llama-3-8B.
const SHAPES: [[usize; 2]; 14] = [
    [192, 576],
    [576, 576],
    [1536, 576],
    [576, 1536],
    [512, 2048],
    [2048, 2048],
    [5632, 2048],
    [2048, 5632],
    [8192, 2048],
    [2048, 8192],
    [1024, 4096],
    [4096, 4096],
    [14336, 4096],
    [4096, 14336],
];

/// Of the bandwidth of a plain read, for one row.
const WANTED_SHARE: f64 = 0.65;

/// For 512 rows.
fn wanted_tflops(weight: WeightType) -> f64 {
    match weight {
        // 16-bit floats may not hold these.
        WeightType::F32 | WeightType::BF16 => 20.0,
        _ => 100.0,
    }
}

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
        let bandwidth = bench.read_bandwidth()?;
        println!("plain read: {:.0} GB/s", bandwidth / 1e9);
        for weight in WeightType::ALL {
            if types.is_empty() || types.contains(&weight) {
                judge(&bench, weight, bandwidth)?;
            }
        }
    }
    if both || has("shapes") {
        for ([n_out, n_cols], n_rows) in SHAPES
            .into_iter()
            .flat_map(|shape| [(shape, 1), (shape, 512)])
        {
            let product = Product {
                weight: types.first().copied().unwrap_or(WeightType::Q4_0),
                n_rows,
                n_out,
                n_cols,
            };
            for found in bench.product(&product)? {
                println!("{}", line(&product, &found));
            }
        }
    }
    Ok(())
}

/// Lines for one row and for 512 rows.
fn judge(bench: &Bench, weight: WeightType, bandwidth: f64) -> trueshot::Result<()> {
    for n_rows in [1, 512] {
        let product = Product {
            weight,
            n_rows,
            n_out: 14336,
            n_cols: 4096,
        };
        for found in bench.product(&product)? {
            if !found.is_chosen {
                println!("{}", line(&product, &found));
                continue;
            }
            let (holds, wanted) = if n_rows == 1 {
                let share = gigabytes(&found) * 1e9 / bandwidth;
                let percent = 100.0 * WANTED_SHARE;
                let text = format!("{:.1} % of a plain read, wanted {percent}", 100.0 * share);
                (share >= WANTED_SHARE, text)
            } else {
                let wanted = wanted_tflops(weight);
                (
                    tflops(&product, &found) >= wanted,
                    format!("wanted {wanted} TFLOP/s"),
                )
            };
            let verdict = if holds { "holds" } else { "FAILS" };
            println!("{}  {wanted}: {verdict}", line(&product, &found));
        }
    }
    Ok(())
}

fn gigabytes(found: &Measurement) -> f64 {
    found.weight_bytes as f64 / found.time.as_secs_f64() / 1e9
}

fn tflops(product: &Product, found: &Measurement) -> f64 {
    let operations = 2.0 * (product.n_rows * product.n_out * product.n_cols) as f64;
    operations / found.time.as_secs_f64() / 1e12
}

fn line(product: &Product, found: &Measurement) -> String {
    let Product {
        weight,
        n_rows,
        n_out,
        n_cols,
    } = product;
    let mark = if found.is_chosen { '*' } else { ' ' };
    format!(
        "{mark} {:<40} {:<7} {n_rows:>3} x {n_out:>5} x {n_cols:>5}: {:>8.1} us {:>5.0} GB/s {:>6.1} TFLOP/s",
        found.kernel,
        format!("{weight:?}"),
        found.time.as_secs_f64() * 1e6,
        gigabytes(found),
        tflops(product, found),
    )
}
