//! Messages to prompt text, through the Jinja template that the file carries.
//!
//! Templates are written for Python: Jinja2 with `trim_blocks` and `lstrip_blocks`, the methods of
//! Python's strings and dicts, and a few functions that Hugging Face `transformers` adds
//! (`apply_chat_template` in its `chat_template_utils.py`). All of that is given to them here.

mod python;
mod strftime;

use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, context};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::gguf::Metadata;
use crate::tokenizer::Tokenizer;

/// The work that one rendering may do: about as many template instructions, each worth 64 bytes of
/// text. A conversation of a thousand messages takes some hundred thousand; a template that would
/// never end, or fill the memory, stops here within a second and a third of a gigabyte.
const FUEL: u64 = 5_000_000;

/// What someone said in a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Message {
    /// Who: `system`, `user`, `assistant`, or what else the model's template knows.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A message of any role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message {
            role: role.into(),
            content: content.into(),
        }
    }

    /// What the model is to keep to throughout.
    pub fn system(content: impl Into<String>) -> Message {
        Message::new("system", content)
    }

    /// What the user says.
    pub fn user(content: impl Into<String>) -> Message {
        Message::new("user", content)
    }

    /// What the model has answered.
    pub fn assistant(content: impl Into<String>) -> Message {
        Message::new("assistant", content)
    }
}

/// A model's chat template.
///
/// # Examples
///
/// ```
/// use trueshot::{ChatTemplate, Message};
///
/// let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}";
/// let template = ChatTemplate::new(source, "<s>", "</s>")?;
/// assert_eq!(template.render(&[Message::user("Hi")], false)?, "<user>Hi</s>");
/// # Ok::<(), trueshot::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    const NAME: &str = "chat";

    /// The template of a file (key `tokenizer.chat_template`), or `None` if it has none.
    ///
    /// # Errors
    ///
    /// [`Error::ChatTemplate`] where it is not a Jinja template, [`Error::InvalidModel`] where it
    /// is not even text.
    pub fn from_metadata(metadata: &Metadata, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let spelling = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or("");
        metadata
            .str("tokenizer.chat_template")?
            .map(|source| {
                ChatTemplate::new(source, spelling(tokenizer.bos()), spelling(tokenizer.eos()))
            })
            .transpose()
    }

    /// A template of one's own; `bos` and `eos` are what it calls `bos_token` and `eos_token`.
    ///
    /// # Errors
    ///
    /// [`Error::ChatTemplate`] with the line where it is not a Jinja template.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<ChatTemplate> {
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(template_error)?;
        let unmarked = python::unmark_generation(source)?;
        let mut environment = Environment::new();
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", python::tojson);
        environment.add_function("raise_exception", python::raise_exception);
        environment.add_function("strftime_now", |format: &str| {
            strftime::utc(format, SystemTime::now())
        });
        environment
            .add_template_owned(ChatTemplate::NAME, unmarked)
            .map_err(template_error)?;
        Ok(ChatTemplate {
            source: source.to_owned(),
            environment,
            bos: bos.to_owned(),
            eos: eos.to_owned(),
        })
    }

    /// The same template with the clock stopped: `strftime_now` shows this time, in UTC, instead of
    /// the present one. For prompts that must come out the same every day.
    #[must_use]
    pub fn with_time(mut self, time: SystemTime) -> ChatTemplate {
        self.environment
            .add_function("strftime_now", move |format: &str| {
                strftime::utc(format, time)
            });
        self
    }

    /// The prompt for a conversation; with `add_generation_prompt` it ends where the model's answer
    /// begins.
    ///
    /// Special tokens, BOS too where the template writes it, are spelled out in the text: encode it
    /// with `parse_special` and without a second BOS.
    ///
    /// # Errors
    ///
    /// [`Error::ChatTemplate`] with the line where the template fails, refuses the conversation or
    /// does not come to an end.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let context = context! {
            messages => Serde(messages),
            add_generation_prompt,
            bos_token => &self.bos,
            eos_token => &self.eos,
        };
        let template = self
            .environment
            .get_template(ChatTemplate::NAME)
            .map_err(template_error)?;
        template.render(context).map_err(template_error)
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }
}

fn template_error(error: minijinja::Error) -> Error {
    let line = error
        .line()
        .map_or(String::new(), |line| format!("line {line}: "));
    let message = match error.detail() {
        Some(detail) => format!("{line}{detail}"),
        None => format!("{line}{}", error.kind()),
    };
    Error::ChatTemplate { message }
}
