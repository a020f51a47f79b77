//! `examples/compare` against a small server on loopback that answers from what trueshot itself computed, with
//! one thing changed.

#[path = "support/example.rs"]
mod example;
#[path = "support/tiny.rs"]
mod tiny;

use example::{assert_fails, assert_succeeds, run, stderr, stdout};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Output;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;
use trueshot::gguf::WeightType;
use trueshot::{Device, Engine};

const PROMPT: &str = "w3 w5 é w7";
const N_TOKENS: usize = 8;
const N_SPECIAL: usize = 259;

/// What trueshot makes of the prompt.
struct Facts {
    model: PathBuf,
    prompt: Vec<u32>,
    answer: Vec<u32>,
    /// `[N_TOKENS, vocab_size]`, 0 to 1.
    probabilities: Vec<Vec<f64>>,
}

/// A model that answers in words, each of which has a twin that is nearly as probable.
fn write_model() -> PathBuf {
    let twins = |name: &str, values: &mut [f32]| {
        if name == "token_embd.weight" {
            let width = values.len() / tiny::vocabulary().len();
            let (special, words) = values.split_at_mut(N_SPECIAL * width);
            special.iter_mut().for_each(|value| *value *= 0.01);
            for pair in words.chunks_exact_mut(2 * width) {
                let (word, twin) = pair.split_at_mut(width);
                let scaled = word.iter().map(|value| value * 0.99);
                twin.iter_mut()
                    .zip(scaled)
                    .for_each(|(twin, value)| *twin = value);
            }
        }
    };
    let bytes = tiny::altered(WeightType::F32, None, &twins)
        .to_bytes()
        .unwrap();
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("compare.gguf");
    std::fs::write(&path, bytes).unwrap();
    path
}

static FACTS: LazyLock<Facts> = LazyLock::new(|| {
    let model = write_model();
    let engine = Engine::builder(&model).device(Device::Cpu).build().unwrap();
    let prompt = engine.tokenizer().encode_prompt(PROMPT, &[], true).unwrap();
    let mut session = engine.session().unwrap();
    let generation = session.generate(PROMPT, &tiny::greedy(N_TOKENS)).unwrap();
    let answer = generation.complete().unwrap().tokens;
    assert_eq!(answer.len(), N_TOKENS);
    assert!(
        answer.iter().all(|&id| id as usize >= N_SPECIAL),
        "{answer:?}"
    );
    let mut probabilities = Vec::new();
    session.rewind(0).unwrap();
    let mut logits = session.eval(&prompt).unwrap().to_vec();
    for &id in &answer {
        let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit).exp()).collect();
        let sum: f64 = weights.iter().sum();
        probabilities.push(weights.iter().map(|weight| weight / sum).collect());
        logits = session.eval(&[id]).unwrap().to_vec();
    }
    Facts {
        model,
        prompt,
        answer,
        probabilities,
    }
});

fn text_of(id: u32) -> String {
    format!(" w{}", id as usize - N_SPECIAL)
}

fn twin_of(id: u32) -> u32 {
    let word = id - N_SPECIAL as u32;
    N_SPECIAL as u32 + (word ^ 1)
}

/// What the server does with a request.
enum Reply {
    Json(Value),
    Status(u16, &'static str),
    Bytes(&'static [u8]),
    Close,
    Silence,
}

type Requests = Arc<Mutex<Vec<(String, Value)>>>;

/// Starts a server that answers by `handle`, which gets each path; its address, and what it was asked.
fn serve(handle: impl Fn(&str) -> Reply + Send + 'static) -> (String, Requests) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let requests = Requests::default();
    let asked = Arc::clone(&requests);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (path, body) = read_request(&stream);
            let reply = handle(&path);
            asked.lock().unwrap().push((path, body));
            let (status, body) = match &reply {
                Reply::Json(value) => ("200 OK".to_owned(), value.to_string().into_bytes()),
                Reply::Status(code, reason) => (format!("{code} {reason}"), b"{}".to_vec()),
                Reply::Bytes(bytes) => ("200 OK".to_owned(), bytes.to_vec()),
                Reply::Close => continue,
                Reply::Silence => {
                    std::thread::sleep(Duration::from_secs(20));
                    continue;
                }
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            // A client that has gone is its own business.
            let _ = stream.write_all(&[head.as_bytes(), &body].concat());
        }
    });
    (url, requests)
}

/// Path and body.
fn read_request(stream: &TcpStream) -> (String, Value) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut length = 0;
    while line.trim() != "" {
        line.clear();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    (path, serde_json::from_slice(&body).unwrap_or_default())
}

fn compare(url: &str, more: &[&str]) -> Output {
    let (model, n_tokens) = (FACTS.model.to_str().unwrap(), N_TOKENS.to_string());
    let args = [
        "--model",
        model,
        "--device",
        "cpu",
        "--prompt",
        PROMPT,
        "--max-tokens",
        &n_tokens,
        "--url",
        url,
    ];
    run("compare", &[&args, more].concat())
}

/// llama.cpp's answer of these tokens: each is held for 0.6 and trueshot's own for 0.2.
fn llama(tokens: &[u32]) -> Reply {
    let candidate =
        |id: u32, share: f64| json!({"id": id, "token": text_of(id), "logprob": share.ln()});
    let described = |(&id, &own): (&u32, &u32)| {
        let mut chosen = candidate(id, 0.6);
        chosen["top_logprobs"] = json!([candidate(id, 0.6), candidate(own, 0.2)]);
        chosen
    };
    let text: String = tokens.iter().map(|&id| text_of(id)).collect();
    let described: Vec<Value> = tokens.iter().zip(&FACTS.answer).map(described).collect();
    Reply::Json(json!({
        "content": text, "tokens": tokens, "stop_type": "limit", "completion_probabilities": described,
    }))
}

fn serve_llama(tokens: Vec<u32>) -> (String, Requests) {
    serve(move |path| match path {
        "/props" => Reply::Json(json!({})),
        "/completion" => llama(&tokens),
        _ => Reply::Status(404, "Not Found"),
    })
}

/// The answer with another token at a position.
fn altered(position: usize, token: u32) -> Vec<u32> {
    let mut tokens = FACTS.answer.clone();
    tokens[position] = token;
    tokens
}

#[track_caller]
fn assert_differs(output: &Output, position: usize, parts: &[&str]) {
    let (text, errors) = (stdout(output), stderr(output));
    assert_eq!(output.status.code(), Some(1), "{text}{errors}");
    let before: String = FACTS.answer[..position]
        .iter()
        .map(|&id| text_of(id))
        .collect();
    let head = format!(
        "{position} tokens agree: {before:?}\ntoken {} differs:\n",
        position + 1
    );
    assert!(text.starts_with(&head), "{text}\nexpected\n{head}");
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    let error = format!("error: the answers differ at token {},", position + 1);
    assert!(errors.contains(&error), "{errors}");
}

#[test]
fn same_answer_of_llama_cpp_agrees() {
    let (url, requests) = serve_llama(FACTS.answer.clone());
    let output = compare(&url, &[]);
    assert_succeeds(&output);
    assert_eq!(stdout(&output), "8 tokens agree\n");
    let requests = requests.lock().unwrap();
    let (path, body) = requests.last().unwrap();
    assert_eq!(path, "/completion");
    assert_eq!(body["prompt"], json!(FACTS.prompt));
    assert_eq!(body["n_predict"], json!(N_TOKENS));
    assert_eq!(body["temperature"], json!(0.0));
}

#[test]
fn other_token_is_shown_with_what_both_engines_hold_of_both() {
    let position = 3;
    let own = FACTS.answer[position];
    let other = FACTS
        .answer
        .iter()
        .copied()
        .find(|&id| id != own && id != twin_of(own))
        .unwrap();
    let (url, _) = serve_llama(altered(position, other));
    let output = compare(&url, &[]);
    let line = |who: &str, id: u32, of_server: &str| {
        let token = format!("{:?} ({id})", text_of(id));
        let probability = FACTS.probabilities[position][id as usize];
        format!("  {who:9} {token:24} trueshot {probability:>7.4}, server {of_server:>7}\n")
    };
    let (ours, theirs) = (
        line("trueshot:", own, "0.2000"),
        line("server:", other, "0.6000"),
    );
    assert_differs(&output, position, &[&ours, &theirs, "\nnot a near tie: "]);
}

#[test]
fn near_tie_is_called_one_and_is_a_difference() {
    let twin = twin_of(FACTS.answer[5]);
    let tokens = altered(5, twin);
    // Without the server's probabilities, which are far apart.
    let (url, _) = serve(move |path| match path {
        "/completion" => Reply::Json(json!({"content": "", "tokens": tokens})),
        _ => Reply::Json(json!({})),
    });
    assert_differs(
        &compare(&url, &[]),
        5,
        &["server unknown", "\na near tie: "],
    );
    let (url, _) = serve_llama(altered(5, twin));
    assert_differs(
        &compare(&url, &[]),
        5,
        &["server  0.6000", "\nnot a near tie: "],
    );
}

#[test]
fn answer_that_ends_too_early_differs() {
    let tokens = FACTS.answer[..2].to_vec();
    let (url, _) = serve(move |path| match path {
        "/completion" => Reply::Json(json!({"content": "", "tokens": tokens, "stop_type": "eos"})),
        _ => Reply::Json(json!({})),
    });
    assert_differs(&compare(&url, &[]), 2, &["server:   the end (2)"]);
}

#[test]
fn answer_cut_short_by_a_limit_agrees_as_far_as_it_goes() {
    let (url, _) = serve_llama(FACTS.answer[..5].to_vec());
    let output = compare(&url, &[]);
    assert_succeeds(&output);
    assert_eq!(stdout(&output), "5 tokens agree\n");
}

/// OpenAI's answer: words, each held for 0.6 and trueshot's own for 0.2, or the text alone.
fn serve_openai(words: Vec<String>, has_logprobs: bool) -> (String, Requests) {
    serve(move |path| match path {
        "/v1/models" => Reply::Json(json!({"data": [{"id": "served"}]})),
        "/v1/completions" => {
            let top = |(word, &own): (&String, &u32)| json!({word: 0.6_f64.ln(), text_of(own): 0.2_f64.ln()});
            let tops: Vec<Value> = words.iter().zip(&FACTS.answer).map(top).collect();
            let logprobs = json!({
                "tokens": words, "token_logprobs": vec![0.6_f64.ln(); words.len()], "top_logprobs": tops,
            });
            let logprobs = if has_logprobs { logprobs } else { Value::Null };
            let choice =
                json!({"text": words.concat(), "finish_reason": "length", "logprobs": logprobs});
            Reply::Json(json!({"choices": [choice]}))
        }
        _ => Reply::Status(404, "Not Found"),
    })
}

fn words() -> Vec<String> {
    FACTS.answer.iter().map(|&id| text_of(id)).collect()
}

#[test]
fn same_text_of_an_openai_server_agrees() {
    for has_logprobs in [true, false] {
        let (url, requests) = serve_openai(words(), has_logprobs);
        let output = compare(&format!("{url}/v1/"), &[]);
        assert_succeeds(&output);
        assert_eq!(stdout(&output), "8 tokens agree\n");
        let requests = requests.lock().unwrap();
        let (_, body) = requests.last().unwrap();
        assert_eq!(body["prompt"], json!(PROMPT));
        assert_eq!(body["model"], json!("served"));
    }
}

#[test]
fn other_text_differs_also_in_characters_of_several_bytes() {
    let mut words = words();
    words[4] = " é漢".to_owned();
    let (url, _) = serve_openai(words.clone(), true);
    let parts = [
        "server:   \" é漢\"",
        "trueshot unknown, server  0.6000",
        "server  0.2000",
    ];
    assert_differs(&compare(&url, &[]), 4, &parts);
    words.truncate(5);
    let (url, requests) = serve_openai(words, false);
    let parts = ["server:   \" é漢\"", "server unknown", "not a near tie"];
    let named = ["--server-model", "named", "--api", "openai"];
    assert_differs(&compare(&url, &named), 4, &parts);
    let requests = requests.lock().unwrap();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].1["model"], json!("named"));
}

/// How the server behaves, more options, and parts of the error.
type Trouble = (
    fn(&str) -> Reply,
    &'static [&'static str],
    &'static [&'static str],
);

#[test]
fn trouble_with_the_server_is_one_sentence_that_names_it() {
    let cases: [Trouble; 8] = [
        (
            |_| Reply::Status(404, "Not Found"),
            &[],
            &["/v1/completions`: status 404 Not Found"],
        ),
        (
            |_| Reply::Status(503, "Loading"),
            &["--api", "llama"],
            &["/completion`: status 503 Loading"],
        ),
        (
            |_| Reply::Bytes(b"\xff<html>"),
            &["--api", "llama"],
            &["/completion`: not JSON", "<html>"],
        ),
        (
            |_| Reply::Json(json!({})),
            &["--api", "llama"],
            &["has no `content`"],
        ),
        (
            |_| Reply::Json(json!([7])),
            &["--api", "openai"],
            &["has no `choices[0].text`"],
        ),
        (
            |_| Reply::Json(json!({"content": ""})),
            &["--api", "llama"],
            &["answer is empty"],
        ),
        (
            |_| Reply::Json(json!({"content": "", "tokens": [4711]})),
            &[],
            &["another model", "4711"],
        ),
        (
            |_| Reply::Silence,
            &["--timeout", "1"],
            &["/props`: no answer within 1 s"],
        ),
    ];
    for (reply, args, parts) in cases {
        let (url, _) = serve(reply);
        assert_fails(&compare(&url, args), 1, parts);
    }
}

#[test]
fn server_that_closes_or_is_absent_is_named() {
    let (url, _) = serve(|_| Reply::Close);
    for api in ["llama", "openai", "auto"] {
        assert_fails(&compare(&url, &["--api", api]), 1, &[&url, "was closed"]);
    }
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("http://{free}");
    assert_fails(&compare(&url, &[]), 1, &[&url, "refused"]);
    assert_fails(&compare("https://127.0.0.1", &[]), 1, &["https"]);
    assert_fails(&compare("127.0.0.1:80", &[]), 1, &["http://"]);
    assert_fails(
        &compare(&url, &["--api", "carrier-pigeon"]),
        2,
        &["auto, llama or openai"],
    );
}
