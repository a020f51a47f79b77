//! The greedy answer of an inference server: llama.cpp's own interface, and that of OpenAI.

use super::Result;
use serde_json::{Value, json};
use std::io;
use std::str::FromStr;
use trueshot::compare::{Choice, Token};

/// How a server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// Whichever it answers to.
    Auto,
    /// `POST /completion`: token ids both ways.
    Llama,
    /// `POST /v1/completions`: text both ways.
    OpenAi,
}

impl FromStr for Api {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Api, Self::Err> {
        match text {
            "auto" => Ok(Api::Auto),
            "llama" => Ok(Api::Llama),
            "openai" => Ok(Api::OpenAi),
            _ => Err("expected auto, llama or openai"),
        }
    }
}

/// A server.
pub struct Server {
    pub url: String,
    pub api: Api,
    /// What an OpenAI-compatible server calls the model; the first that it lists without it.
    pub model: Option<String>,
    pub timeout_seconds: u64,
}

/// What a server made of a prompt.
pub struct Reply {
    pub text: String,
    /// What it said of its tokens: all of them, or none.
    pub choices: Vec<Choice>,
    /// Whether the model ended the answer.
    pub has_ended: bool,
}

impl Reply {
    pub fn has_ids(&self) -> bool {
        let mut tokens = self.choices.iter().map(|choice| &choice.token);
        !self.choices.is_empty() && tokens.all(|token| token.id.is_some() || token.is_end)
    }
}

/// Tokens whose probabilities are asked for: of llama.cpp, and of others, some of which give no more.
const N_PROBS: usize = 10;
const N_LOGPROBS: usize = 5;

/// What minreq takes for the reason where nothing came at all.
const NO_STATUS: &str = "Server did not provide a status line";

impl Server {
    /// The most probable continuation of a prompt, which is given as text and as token ids.
    pub fn complete(&self, prompt: &str, ids: &[u32], max_tokens: usize) -> Result<Reply> {
        let api = match self.api {
            Api::Auto if self.get("/props")?.is_some() => Api::Llama,
            Api::Auto => Api::OpenAi,
            api => api,
        };
        if api == Api::Llama {
            let reply = self.post(
                "/completion",
                &json!({
                    "prompt": ids,
                    "n_predict": max_tokens,
                    "temperature": 0.0,
                    "repeat_penalty": 1.0,
                    "n_probs": N_PROBS,
                    "return_tokens": true,
                    "cache_prompt": false,
                    "stream": false,
                }),
            )?;
            return llama_reply(&reply).ok_or_else(|| self.lacks("/completion", "content"));
        }
        let reply = self.post(
            "/v1/completions",
            &json!({
                "model": self.model()?,
                "prompt": prompt,
                "max_tokens": max_tokens,
                "temperature": 0.0,
                "logprobs": N_LOGPROBS,
                "stream": false,
            }),
        )?;
        openai_reply(&reply).ok_or_else(|| self.lacks("/v1/completions", "choices[0].text"))
    }

    fn model(&self) -> Result<String> {
        if let Some(model) = &self.model {
            return Ok(model.clone());
        }
        let models = self.get("/v1/models")?.unwrap_or_default();
        let first = models["data"][0]["id"].as_str();
        Ok(first.unwrap_or("default").to_owned())
    }

    /// `None` where the server does not know the path.
    fn get(&self, path: &str) -> Result<Option<Value>> {
        let response = self.send(minreq::get(self.at(path)), path)?;
        Ok(match response.status_code {
            200 => serde_json::from_slice(response.as_bytes()).ok(),
            _ => None,
        })
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let request = minreq::post(self.at(path))
            .with_header("Content-Type", "application/json")
            .with_body(body.to_string());
        let response = self.send(request, path)?;
        let bytes = response.as_bytes();
        if response.status_code != 200 {
            let (code, reason) = (response.status_code, &response.reason_phrase);
            let body = excerpt(bytes);
            return Err(format!("`{}`: status {code} {reason}: {body}", self.at(path)).into());
        }
        serde_json::from_slice(bytes).map_err(|error| {
            let body = excerpt(bytes);
            format!("`{}`: not JSON, {error}: {body}", self.at(path)).into()
        })
    }

    fn send(&self, request: minreq::Request, path: &str) -> Result<minreq::Response> {
        let url = self.at(path);
        match request.with_timeout(self.timeout_seconds).send() {
            Ok(response) if response.reason_phrase == NO_STATUS => {
                Err(format!("`{url}`: the connection was closed without an answer").into())
            }
            Ok(response) => Ok(response),
            Err(minreq::Error::IoError(error)) if error.kind() == io::ErrorKind::TimedOut => {
                let seconds = self.timeout_seconds;
                Err(format!("`{url}`: no answer within {seconds} s").into())
            }
            Err(error) => Err(format!("`{url}`: {error}").into()),
        }
    }

    fn at(&self, path: &str) -> String {
        let url = self.url.trim_end_matches('/');
        let url = url.strip_suffix("/v1").unwrap_or(url);
        format!("{url}{path}")
    }

    fn lacks(&self, path: &str, field: &str) -> Box<dyn std::error::Error> {
        format!("`{}`: the answer has no `{field}`", self.at(path)).into()
    }
}

/// The beginning of what a server said, in one line.
fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text: String = text.chars().take(200).collect();
    format!("{:?}", text.trim())
}

fn llama_reply(reply: &Value) -> Option<Reply> {
    let text = reply["content"].as_str()?.to_owned();
    let choices = match described(&reply["completion_probabilities"]) {
        choices if choices.is_empty() => identified(&reply["tokens"]),
        choices => choices,
    };
    let has_ended = reply["stop_type"] == "eos" || reply["stopped_eos"] == true;
    Some(Reply {
        text,
        choices,
        has_ended,
    })
}

fn openai_reply(reply: &Value) -> Option<Reply> {
    let choice = &reply["choices"][0];
    let text = choice["text"].as_str()?.to_owned();
    let logprobs = &choice["logprobs"];
    // llama.cpp's server describes tokens in its own way here too.
    let choices = match described(&logprobs["content"]) {
        choices if choices.is_empty() => listed(logprobs),
        choices => choices,
    };
    Some(Reply {
        text,
        choices,
        has_ended: choice["finish_reason"] == "stop",
    })
}

/// Tokens of which nothing but the ids is known.
fn identified(ids: &Value) -> Vec<Choice> {
    let ids = ids.as_array().into_iter().flatten();
    let ids = ids.filter_map(|id| u32::try_from(id.as_u64()?).ok());
    let token = |id| Token {
        id: Some(id),
        ..Token::default()
    };
    let choice = |id| Choice {
        token: token(id),
        candidates: Vec::new(),
    };
    ids.map(choice).collect()
}

/// llama.cpp's tokens: objects with `id`, `token`, `bytes`, `logprob` and `top_logprobs`, or, by older
/// servers and for probabilities behind the sampler, with other names.
fn described(tokens: &Value) -> Vec<Choice> {
    let tokens = tokens.as_array().into_iter().flatten();
    let choice = |token: &Value| {
        let others = ["top_logprobs", "top_probs", "probs"].map(|name| token[name].as_array());
        let others = others.into_iter().flatten().flatten();
        let candidates = others.chain([token]).filter_map(|candidate| {
            let logprob = candidate["logprob"].as_f64().map(f64::exp);
            let probability = logprob.or(candidate["prob"].as_f64())?;
            Some((described_token(candidate), probability))
        });
        Choice {
            token: described_token(token),
            candidates: candidates.collect(),
        }
    };
    tokens.map(choice).collect()
}

fn described_token(token: &Value) -> Token {
    let bytes = token["bytes"].as_array().map(|bytes| {
        let bytes = bytes
            .iter()
            .filter_map(|byte| u8::try_from(byte.as_u64()?).ok());
        bytes.collect::<Vec<u8>>()
    });
    let texts = ["token", "tok_str", "content"].map(|name| token[name].as_str());
    let text = texts.into_iter().flatten().next().unwrap_or_default();
    Token {
        id: token["id"].as_u64().and_then(|id| u32::try_from(id).ok()),
        bytes: bytes.unwrap_or_else(|| text.into()),
        is_end: false,
    }
}

/// OpenAI's tokens: lists of texts, of their logarithms, and of maps from texts to logarithms.
fn listed(logprobs: &Value) -> Vec<Choice> {
    let tokens = logprobs["tokens"].as_array().into_iter().flatten();
    let choice = |(position, text): (usize, &Value)| {
        let token = |text: &str| Token {
            bytes: text.into(),
            ..Token::default()
        };
        let chosen = token(text.as_str().unwrap_or_default());
        let of_chosen = logprobs["token_logprobs"][position].as_f64();
        let of_chosen = of_chosen.map(|logprob| (chosen.clone(), logprob.exp()));
        let top = logprobs["top_logprobs"][position].as_object();
        let others = top.into_iter().flatten();
        let others =
            others.filter_map(|(text, logprob)| Some((token(text), logprob.as_f64()?.exp())));
        Choice {
            candidates: of_chosen.into_iter().chain(others).collect(),
            token: chosen,
        }
    };
    tokens.enumerate().map(choice).collect()
}
