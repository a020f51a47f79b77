//! Show where a token's time goes: `cargo run --release --example profile -- --model MODEL --tg 128`.

mod support;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use support::{Result, options};
use trueshot::measure::Bench;
use trueshot::plan::layer_and_name;
use trueshot::{Clock, Device, DeviceInfo, GpuChoice, Profile, Sentinels, Session};

const ABOUT: &str = "\
profile: where the time of a token or of a prompt goes, a line for each kind of step; and the memory in use

usage: cargo run --release --example profile -- [OPTIONS]

It is the model's own work: no sentinels look at it, unless --sentinels asks for them.

  --tg N             a token behind N others [128]
  --pp N             a prompt of N tokens, at most one batch, from an empty cache instead
  --repeat N         runs, of which the one with the median time is shown [5]
  --capture          runs it once under the graphics debugger that this was started in, and shows nothing
  --in-order         lines in the order of execution instead of the slowest first
";

fn main() -> ExitCode {
    support::run(profile)
}

fn profile() -> Result {
    let (mut tg, mut pp, mut repeat, mut in_order) = (128, None, 5, false);
    let mut capture = false;
    let mut options = options::Options::parse(ABOUT, |name, parser| {
        match name {
            "tg" => tg = options::value(name, parser)?,
            "pp" => pp = Some(options::value(name, parser)?),
            "repeat" => repeat = options::value(name, parser)?,
            "in-order" => in_order = true,
            "capture" => capture = true,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if repeat == 0 {
        return Err("`--repeat 0`: expected at least 1".into());
    }
    if pp == Some(0) {
        return Err("`--pp 0`: expected at least 1".into());
    }
    let (n_before, n_tokens) = pp.map_or((tg, 1), |n_tokens| (0, n_tokens));
    options.context = options.context.or(Some(n_before + n_tokens));
    options.sentinels = options.sentinels.or(Some(Sentinels::Off));
    let (model, gguf) = options.open()?;
    let engine = options.build(gguf)?;
    let device = engine.device_info().clone();
    let mut session = engine.session()?;
    let vocab_size = engine.tokenizer().vocab_size();
    let tokens: Vec<u32> = (0..n_before + n_tokens)
        .map(|i| (i * 7919 % vocab_size) as u32)
        .collect();
    let (before, tokens) = tokens.split_at(n_before);
    if !before.is_empty() {
        session.eval(before)?;
    }
    if capture {
        if !session.capture(tokens)? {
            let how = "start this in Xcode, or built with debug assertions in RenderDoc";
            return Err(format!("no graphics debugger: {how}").into());
        }
        writeln!(io::stderr(), "captured")?;
        return Ok(());
    }

    let unprofiled = median(repeat, &mut session, n_before, |session| {
        let started = Instant::now();
        session.eval(tokens)?;
        Ok(started.elapsed())
    })?;
    let (_, profile) = median_by(repeat, &mut session, n_before, |session| {
        let profile = session.profile(tokens)?;
        Ok((profile.total_time(), profile))
    })?;
    let bandwidth = read_bandwidth(&options.device, &device)?;

    let subject = match n_before {
        0 => format!("a prompt of {n_tokens} tokens"),
        n => format!("a token at position {n}"),
    };
    let mut text = format!(
        "{model} on {} ({}): {subject}\nby {}; {:.2} us off each for the clock itself\n\n",
        device.name,
        device.backend,
        how(profile.clock),
        profile.overhead.as_secs_f64() * 1e6
    );
    let mut rows = Row::group(&profile);
    if !in_order {
        rows.sort_by_key(|row| std::cmp::Reverse(row.time));
    }
    let total = profile.total_time();
    table(&mut text, &rows, total, bandwidth)?;
    summary(&mut text, &rows, total, unprofiled, bandwidth)?;
    writeln!(text, "\nmemory with one session\n{}", engine.memory()?)?;
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// The median time of several runs, each from `n_before` tokens on, after one that does not count.
fn median(
    repeat: usize,
    session: &mut Session,
    n_before: usize,
    run: impl FnMut(&mut Session) -> Result<Duration>,
) -> Result<Duration> {
    let mut run = run;
    let (time, ()) = median_by(repeat, session, n_before, |session| Ok((run(session)?, ())))?;
    Ok(time)
}

/// As [`median`], with what the run of that time gave.
fn median_by<T>(
    repeat: usize,
    session: &mut Session,
    n_before: usize,
    mut run: impl FnMut(&mut Session) -> Result<(Duration, T)>,
) -> Result<(Duration, T)> {
    let mut runs = Vec::new();
    for _ in 0..=repeat {
        session.rewind(n_before)?;
        runs.push(run(session)?);
    }
    runs.remove(0);
    runs.sort_by_key(|(time, _)| *time);
    Ok(runs.swap_remove((repeat - 1) / 2))
}

/// Bytes a second that the GPU of an engine reads at best; `None` for other devices.
fn read_bandwidth(device: &Device, info: &DeviceInfo) -> Result<Option<f64>> {
    let choice = match device {
        Device::Gpu(choice) => choice.clone(),
        Device::Auto if info.n_threads == 0 => GpuChoice::Best,
        _ => return Ok(None),
    };
    Ok(Some(Bench::new(&choice)?.read_bandwidth()?))
}

fn how(clock: Clock) -> &'static str {
    match clock {
        Clock::Dispatches => {
            "GPU timestamps between dispatches, so waits between them are in their times"
        }
        Clock::Passes => "GPU timestamps around a pass for each dispatch",
        _ => "the host's clock",
    }
}

/// Dispatches of one kernel for one kind of step, over all layers.
struct Row {
    steps: String,
    kernel: &'static str,
    n_dispatches: usize,
    time: Duration,
    bytes: u64,
    operations: u64,
}

impl Row {
    /// In the order in which each is first executed.
    fn group(profile: &Profile) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        let mut places = HashMap::new();
        for dispatch in &profile.dispatches {
            let names: Vec<&str> = dispatch
                .steps
                .iter()
                .map(|name| layer_and_name(name).1)
                .collect();
            let steps = names.join(" + ");
            let kernel = dispatch.kernel.unwrap_or("");
            let place = *places.entry((steps.clone(), kernel)).or_insert(rows.len());
            if place == rows.len() {
                rows.push(Row {
                    steps,
                    kernel,
                    n_dispatches: 0,
                    time: Duration::ZERO,
                    bytes: 0,
                    operations: 0,
                });
            }
            let row = &mut rows[place];
            row.n_dispatches += 1;
            row.time += dispatch.time;
            row.bytes += dispatch.bytes;
            row.operations += dispatch.operations;
        }
        rows
    }
}

fn table(text: &mut String, rows: &[Row], total: Duration, bandwidth: Option<f64>) -> Result {
    let width = rows.iter().map(|row| row.steps.len()).max().unwrap_or(0);
    let width = width.max("step".len());
    let of_limit = bandwidth.map_or("", |_| "  of limit");
    writeln!(
        text,
        "{:width$}  {:14} {:>6} {:>10} {:>8} {:>7} {:>9} {:>9}{of_limit} {:>9}",
        "step", "kernel", "n", "us", "us each", "share", "MB", "GB/s", "TFLOP/s"
    )?;
    for row in rows {
        let seconds = row.time.as_secs_f64();
        let rate = |amount: u64| amount as f64 / seconds.max(1e-9);
        let cell = |width: usize, amount: u64, text: String| match amount {
            _ if row.time.is_zero() => format!("{:>width$}", ""),
            0 => format!("{:>width$}", ""),
            _ => format!("{text:>width$}"),
        };
        let of_limit = bandwidth.map_or(String::new(), |bandwidth| {
            cell(
                10,
                row.bytes,
                format!("{:.0} %", rate(row.bytes) / bandwidth * 100.0),
            )
        });
        let line = format!(
            "{:width$}  {:14} {:>6} {:>10.1} {:>8.1} {:>5.1} % {} {}{of_limit} {}",
            row.steps,
            row.kernel,
            row.n_dispatches,
            seconds * 1e6,
            seconds * 1e6 / row.n_dispatches as f64,
            seconds / total.as_secs_f64() * 100.0,
            cell(9, row.bytes, format!("{:.2}", row.bytes as f64 / 1e6)),
            cell(9, row.bytes, format!("{:.1}", rate(row.bytes) / 1e9)),
            cell(
                9,
                row.operations,
                format!("{:.3}", rate(row.operations) / 1e12)
            ),
        );
        writeln!(text, "{}", line.trim_end())?;
    }
    Ok(())
}

fn summary(
    text: &mut String,
    rows: &[Row],
    total: Duration,
    unprofiled: Duration,
    bandwidth: Option<f64>,
) -> Result {
    let n_dispatches: usize = rows.iter().map(|row| row.n_dispatches).sum();
    let bytes: u64 = rows.iter().map(|row| row.bytes).sum();
    let [total, unprofiled] = [total, unprofiled].map(|time| time.as_secs_f64());
    writeln!(
        text,
        "\n{n_dispatches} dispatches: {:.1} us, {:.1} us each; {:.1} MB at {:.1} GB/s",
        total * 1e6,
        total * 1e6 / n_dispatches as f64,
        bytes as f64 / 1e6,
        bytes as f64 / total / 1e9
    )?;
    writeln!(
        text,
        "unprofiled, with submission and the reading of logits: {:.1} us ({:+.1} us)",
        unprofiled * 1e6,
        (unprofiled - total) * 1e6
    )?;
    if let Some(bandwidth) = bandwidth {
        writeln!(
            text,
            "limit: a streaming read at {:.1} GB/s, {:.1} us for these bytes",
            bandwidth / 1e9,
            bytes as f64 / bandwidth * 1e6
        )?;
    }
    Ok(())
}
