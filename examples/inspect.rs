//! Look into a model file: `cargo run --release --example inspect -- --model model.gguf`.

mod support;

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;
use support::Result;
use support::options::{FileError, Options};
use trueshot::gguf::{Gguf, Value, WeightType};
use trueshot::model::{DecoderSpec, architectures};
use trueshot::plan::{Buffer, BufferId, Extent, Op, Plan};
use trueshot::{Device, Engine, Error, Tokenizer, gpus};

const ABOUT: &str = "\
inspect: what is in a model file and what the engine makes of it

usage: cargo run --release --example inspect -- [OPTIONS]

Prints metadata, tensors, the spec, the plan, the memory that it takes, and at the end whether the file runs and
what it needs. Nothing is loaded on a device; --weights, --kv and --context change the memory. The exit code is 1 for
a file that does not run.

  --hashes           the XXH64 of each tensor, to compare two files; as `llama-gguf-hash --xxh64`
";

fn main() -> ExitCode {
    support::run(inspect)
}

fn inspect() -> Result {
    let mut has_hashes = false;
    let mut options = Options::parse(ABOUT, |name, _| {
        has_hashes |= name == "hashes";
        Ok(name == "hashes")
    })?;
    let mut out = BufWriter::new(io::stdout().lock());
    let (_, gguf) = match options.open() {
        Ok(opened) => opened,
        Err(error) => {
            // A damaged file is no model of any kind; of one that needs something else this much can be said.
            if let Some(FileError { error, .. }) = error.downcast_ref()
                && matches!(error, Error::Unsupported { .. })
            {
                writeln!(out, "runs: no: {error}")?;
                out.flush()?;
            }
            return Err(error);
        }
    };
    print_file(&mut out, &gguf, has_hashes)?;
    // What follows may refuse the model; the file's own contents are shown all the same.
    let needs = Needs::of(&gguf);

    // The reference reads weights from the file as it needs them, so building it loads nothing.
    options.device = Device::Reference;
    let built = options.builder(gguf).build();
    if let Ok(engine) = &built {
        print_spec(&mut out, engine.spec())?;
        print_plan(&mut out, engine.plan())?;
        print_memory(&mut out, engine)?;
    }
    needs.print(&mut out, built.as_ref())?;
    out.flush()?;
    built?;
    Ok(())
}

/// What a file needs, as far as it says so itself.
struct Needs {
    architecture: String,
    weight_types: String,
    tokenizer: String,
    weight_bytes: u64,
}

impl Needs {
    fn of(gguf: &Gguf) -> Needs {
        let text = |key| gguf.metadata().str(key).ok().flatten();
        let architecture = match text("general.architecture") {
            Some(name) if architectures().any(|(known, _)| known == name) => {
                format!("{name}, supported")
            }
            Some(name) => format!("{}, not supported", name.escape_debug()),
            None => "not stated".to_owned(),
        };
        let mut types: BTreeMap<&str, (usize, bool)> = BTreeMap::new();
        for tensor in gguf.tensors() {
            let is_supported = WeightType::try_from(tensor.ty).is_ok();
            types.entry(tensor.ty.name()).or_insert((0, is_supported)).0 += 1;
        }
        let types = types.into_iter().map(|(name, (n, is_supported))| {
            let tensors = if n == 1 { "tensor" } else { "tensors" };
            let not = if is_supported { "" } else { "not " };
            format!("{name} ({n} {tensors}, {not}supported)")
        });
        let tokenizer = match (text("tokenizer.ggml.model"), text("tokenizer.ggml.pre")) {
            (None | Some("none" | "no_vocab"), _) => "none: the model takes token ids".to_owned(),
            (Some(model), pre) => {
                let pre = pre.map_or(String::new(), |pre| {
                    format!(", pre-tokenizer {}", pre.escape_debug())
                });
                let verdict = match Tokenizer::from_metadata(gguf.metadata()) {
                    Ok(_) => "supported".to_owned(),
                    Err(Error::Unsupported { kind, name, .. }) => {
                        format!("{kind} {} is not supported", name.escape_debug())
                    }
                    Err(error) => error.to_string(),
                };
                format!("{}{pre}, {verdict}", model.escape_debug())
            }
        };
        Needs {
            architecture,
            weight_types: types.collect::<Vec<_>>().join(", "),
            tokenizer,
            weight_bytes: gguf.tensors().iter().map(|tensor| tensor.n_bytes).sum(),
        }
    }

    fn print(&self, out: &mut impl Write, built: Result<&Engine, &Error>) -> io::Result<()> {
        writeln!(out)?;
        match built {
            Ok(_) => writeln!(out, "runs: yes")?,
            Err(error) => writeln!(out, "runs: no: {error}")?,
        }
        let gpus = gpus();
        let devices = gpus.iter().map(|gpu| gpu.name.as_str());
        let devices: Vec<&str> = devices.chain(["cpu"]).collect();
        writeln!(out, "  devices here: {}", devices.join(", "))?;
        writeln!(out, "  architecture: {}", self.architecture)?;
        writeln!(out, "  weight types: {}", self.weight_types)?;
        writeln!(out, "  tokenizer: {}", self.tokenizer)?;
        let Ok(engine) = built else {
            let weights = mib(self.weight_bytes);
            return writeln!(
                out,
                "  needs {weights:.1} MiB for the weights as they are in the file"
            );
        };
        let template = match engine.chat_template() {
            Ok(_) => "can be used".to_owned(),
            Err(Error::ChatTemplate { message }) => message,
            Err(error) => error.to_string(),
        };
        writeln!(out, "  chat template: {template}")?;
        let kv = engine.kv_layout();
        writeln!(
            out,
            "  needs {:.1} MiB for the weights, {:.1} MiB for the cache of a session of {} tokens",
            mib(engine.weight_bytes()),
            mib(kv.total_bytes()),
            kv.capacity,
        )
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn print_file(out: &mut impl Write, gguf: &Gguf, has_hashes: bool) -> io::Result<()> {
    let [version, bytes] = [gguf.version().into(), gguf.file_bytes()];
    writeln!(
        out,
        "GGUF version {version}, {bytes} bytes, tensors aligned to {}",
        gguf.alignment()
    )?;

    writeln!(out, "\nmetadata: {} keys", gguf.metadata().len())?;
    for (key, value) in gguf.metadata().iter() {
        writeln!(out, "  {} = {}", key.escape_debug(), brief(value))?;
    }

    writeln!(out, "\ntensors: {}", gguf.tensors().len())?;
    for tensor in gguf.tensors() {
        let shape = format!("{:?}", tensor.shape);
        write!(
            out,
            "  {:<28} {:<4} {shape:<14} {} bytes at {}",
            tensor.name.escape_debug().to_string(),
            tensor.ty.name(),
            tensor.n_bytes,
            tensor.offset,
        )?;
        if gguf.n_parts() > 1 {
            write!(out, " of part {}", tensor.part + 1)?;
        }
        if has_hashes {
            write!(out, ", xxh64 {:016x}", gguf.tensor_hash(tensor))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// A value on one line of bearable length.
fn brief(value: &Value) -> String {
    const MOST_CHARS: usize = 100;
    let text = match value {
        Value::Array(array) => format!("{} {}: {value}", array.len(), array.kind()),
        Value::String(text) => format!("{text:?}"),
        scalar => scalar.to_string(),
    };
    match text.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => format!("{} ..", &text[..end]),
        None => text,
    }
}

fn print_spec(out: &mut impl Write, spec: &DecoderSpec) -> io::Result<()> {
    writeln!(out, "\nspec")?;
    writeln!(
        out,
        "  architecture: {}, name: {}",
        spec.architecture,
        spec.name.escape_debug()
    )?;
    writeln!(
        out,
        "  vocab_size: {}, hidden_size: {}",
        spec.vocab_size, spec.hidden_size
    )?;
    writeln!(
        out,
        "  context_length: {}, n_layer: {}",
        spec.context_length,
        spec.n_layer()
    )?;
    writeln!(
        out,
        "  norm_eps: {:e}, embedding_scale: {}, activation: {:?}",
        spec.norm_eps, spec.embedding_scale, spec.activation,
    )?;
    let mut first = 0;
    for same in spec.layers.chunk_by(|a, b| a == b) {
        let (layer, last) = (&same[0], first + same.len() - 1);
        let range = if last == first {
            first.to_string()
        } else {
            format!("{first} to {last}")
        };
        writeln!(
            out,
            "  layer {range}: n_head {}, n_head_kv {}, head_dim {}, intermediate_size {}, \
             attention_scale {}, window {}",
            layer.n_head,
            layer.n_head_kv,
            layer.head_dim,
            layer.intermediate_size,
            layer.attention_scale,
            layer
                .window
                .map_or("none".to_owned(), |tokens| format!("{tokens} tokens")),
        )?;
        if let Some(experts) = &layer.experts {
            writeln!(
                out,
                "    experts: {} of {}, intermediate_size {}, shared {}, {:?}",
                experts.n_chosen,
                experts.n_expert,
                experts.intermediate_size,
                experts.shared_size.unwrap_or(0),
                experts.gating,
            )?;
        }
        match &layer.rope {
            Some(rope) => writeln!(
                out,
                "    rope: theta {}, n_dims {}, {:?} pairs, scaling {:?}",
                rope.theta, rope.n_dims, rope.pairing, rope.scaling,
            )?,
            None => writeln!(out, "    no rope")?,
        }
        first = last + 1;
    }
    Ok(())
}

fn print_plan(out: &mut impl Write, plan: &Plan) -> io::Result<()> {
    writeln!(
        out,
        "\nplan: {} steps on {} buffers",
        plan.steps.len(),
        plan.buffers.len()
    )?;
    for step in &plan.steps {
        let show = |id: BufferId| {
            let buffer = plan.buffer(id);
            format!("{}[{}]", buffer.name, buffer.width)
        };
        let sources: Vec<String> = step.op.sources().into_iter().map(show).collect();
        let target = step.op.dst().map_or("cache".to_owned(), show);
        writeln!(
            out,
            "  {:<22} {:<16} {} -> {target}",
            step.name,
            op_name(&step.op),
            sources.join(", "),
        )?;
    }
    Ok(())
}

fn op_name(op: &Op) -> &'static str {
    match op {
        Op::Embed { .. } => "embed",
        Op::RmsNorm { .. } => "rms_norm",
        Op::LayerNorm { .. } => "layer_norm",
        Op::MatMul { .. } => "matmul",
        Op::ChooseExperts { .. } => "choose_experts",
        Op::ExpertWeights { .. } => "expert_weights",
        Op::ExpertMatMul { .. } => "expert_matmul",
        Op::HeadMatMul { .. } => "head_matmul",
        Op::WeighSlots { .. } => "weigh_slots",
        Op::WeightedSum { .. } => "weighted_sum",
        Op::Rope { .. } => "rope",
        Op::StoreKv { .. } => "store_kv",
        Op::Attention { .. } => "attention",
        Op::GatedActivation { .. } => "gated_activation",
        Op::Map { .. } => "map",
        Op::CausalConv { .. } => "causal_conv",
        Op::StateScan { .. } => "state_scan",
        Op::DeltaRule { .. } => "delta_rule",
        Op::GroupNorm { .. } => "group_norm",
        Op::TakeColumns { .. } => "take_columns",
        Op::Add { .. } => "add",
        Op::SelectOutputs { .. } => "select_outputs",
    }
}

fn print_memory(out: &mut impl Write, engine: &Engine) -> io::Result<()> {
    let (plan, kv) = (engine.plan(), engine.kv_layout());
    let row_bytes = |is_of_outputs: bool| -> usize {
        let buffers = plan.buffers.iter();
        let buffers = buffers.filter(|b| (b.extent == Extent::Outputs) == is_of_outputs);
        let bytes = |b: &Buffer| b.width * b.extent.n_slots() * size_of::<f32>();
        buffers.map(bytes).sum()
    };
    writeln!(out, "\nmemory")?;
    writeln!(out, "  weights: {:.1} MiB", mib(engine.weight_bytes()))?;
    writeln!(
        out,
        "  cache: {:.1} MiB a session ({} tokens of {} bytes)",
        mib(kv.total_bytes()),
        kv.capacity,
        kv.bytes_per_position(),
    )?;
    writeln!(
        out,
        "  states: {:.1} MiB a session",
        mib(plan.state_bytes()),
    )?;
    writeln!(
        out,
        "  activations: {} bytes for each token of a batch, {} for each row of logits",
        row_bytes(false),
        row_bytes(true),
    )
}
