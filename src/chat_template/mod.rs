//! Messages to prompt text, through the Jinja template that the file carries.
//!
//! Templates are written for Python: Jinja2 with `trim_blocks` and `lstrip_blocks`, the methods of
//! Python's strings and dicts, and a few functions that Hugging Face `transformers` adds
//! (`apply_chat_template` in its `chat_template_utils.py`). All of that is given to them here.

mod compile;
mod constants;
mod json;
mod limits;
mod message;
mod python;
mod strftime;

use std::collections::BTreeMap;
use std::time::SystemTime;

pub use json::Json;
pub use message::{ChatOptions, Message, ToolCall};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value, context, machinery};

use self::compile::compile;
use crate::error::{Error, Result};
use crate::gguf::Metadata;
use crate::tokenizer::Tokenizer;

/// The work that one rendering may do: about as many template instructions, each worth 64 bytes of
/// text. A conversation of a thousand messages takes some hundred thousand; a template that would
/// never end, or fill the memory, stops here within a second and a third of a gigabyte.
const FUEL: u64 = 5_000_000;

/// The most bytes of a template. The longest of real models have some ten thousand.
const MAX_SOURCE_BYTES: usize = 1 << 20;

/// Of these one stands in front of each control token that a message spells out. Unicode keeps them
/// for use inside a program: text does not have them, and one that does leaves others.
const MARKS: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';

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
    /// The source without what is for training.
    template: String,
    syntax: SyntaxConfig,
    environment: Environment<'static>,
    bos: String,
    eos: String,
    /// The clock's time where it is stopped.
    time: Option<SystemTime>,
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
        metadata
            .str("tokenizer.chat_template")?
            .map(|source| ChatTemplate::for_tokenizer(source, tokenizer))
            .transpose()
    }

    /// A template of one's own with the tokens of a model.
    ///
    /// # Errors
    ///
    /// As [`ChatTemplate::new`].
    pub fn for_tokenizer(source: &str, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
        let spelling = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or("");
        ChatTemplate::new(source, spelling(tokenizer.bos()), spelling(tokenizer.eos()))
    }

    /// A template of one's own; `bos` and `eos` are what it calls `bos_token` and `eos_token`.
    ///
    /// # Errors
    ///
    /// [`Error::ChatTemplate`] with the line where it is not a Jinja template, or for one that goes beyond
    /// what any model's template has: more than a mebibyte, more than 1000 words and signs in a tag or
    /// 300 `elif` in all, arguments from a list (`f(*xs)`), `loop.cycle` without arguments, or a constant
    /// list that is repeated to more than 1024 items.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<ChatTemplate> {
        if source.len() > MAX_SOURCE_BYTES {
            let message = format!(
                "{} bytes, expected at most {MAX_SOURCE_BYTES}",
                source.len()
            );
            return Err(Error::ChatTemplate { message });
        }
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(template_error)?;
        let template = python::unmark_generation(source)?;
        compile(ChatTemplate::NAME, &template, syntax.clone()).map_err(template_error)?;
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(python::method);
        environment.set_formatter(python::show);
        // Shows all that there is, unpaid.
        environment.remove_global("debug");
        environment.add_filter("string", python::string);
        environment.add_filter("tojson", python::tojson);
        environment.add_filter("trim", python::trim);
        environment.add_function("raise_exception", python::raise_exception);
        environment.add_function("strftime_now", |format: &str| {
            strftime::utc(format, SystemTime::now())
        });
        limits::add_to(&mut environment);
        Ok(ChatTemplate {
            source: source.to_owned(),
            template,
            syntax,
            environment,
            bos: bos.to_owned(),
            eos: eos.to_owned(),
            time: None,
        })
    }

    /// The same template with the clock stopped: `strftime_now` shows this time, in UTC, instead of
    /// the present one. For prompts that must come out the same every day.
    #[must_use]
    pub fn with_time(mut self, time: SystemTime) -> ChatTemplate {
        self.time = Some(time);
        self.environment
            .add_function("strftime_now", move |format: &str| {
                strftime::utc(format, time)
            });
        self
    }

    /// The prompt for a conversation without tools; with `add_generation_prompt` it ends where the
    /// model's answer begins.
    ///
    /// # Errors
    ///
    /// As [`ChatTemplate::render_with`].
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let options = ChatOptions {
            add_generation_prompt,
            ..ChatOptions::default()
        };
        self.render_with(messages, &options)
    }

    /// The prompt for a conversation.
    ///
    /// Special tokens, BOS too where the template writes it, are spelled out in the text, and nothing
    /// tells the template's own from those that a message spells out: [`ChatTemplate::encode`] does.
    ///
    /// # Errors
    ///
    /// [`Error::ChatTemplate`] with the line where the template fails, refuses the conversation or
    /// does not come to an end; where lists and maps nest more than 100 levels deep, where a namespace, a
    /// loop or a macro is put inside another value, and where one filter or method would write more than
    /// 16 MiB of text.
    pub fn render_with(&self, messages: &[Message], options: &ChatOptions) -> Result<String> {
        // Jinja tells what is absent from what is there and empty.
        let tools = match options.tools.as_slice() {
            [] => Value::UNDEFINED,
            tools => Serde(tools).into(),
        };
        let told = context! {
            messages => Serde(messages),
            tools => tools,
            add_generation_prompt => options.add_generation_prompt,
            bos_token => &self.bos,
            eos_token => &self.eos,
        };
        let context = context! { ..told, ..context!(..Serde(&options.variables)) };
        let instructions = compile(ChatTemplate::NAME, &self.template, self.syntax.clone())
            .map_err(template_error)?;
        let mut text = String::new();
        machinery::eval(
            &self.environment,
            &instructions,
            context,
            &BTreeMap::new(),
            &mut machinery::make_string_output(&mut text),
            AutoEscape::None,
        )
        .map_err(template_error)?;
        Ok(text)
    }

    /// The ids of the prompt for a conversation, with one BOS where the file asks for it or the
    /// template writes it. Control tokens that a message, a tool or its result spells out are plain
    /// text there; the template's own are tokens.
    ///
    /// # Errors
    ///
    /// As [`ChatTemplate::render_with`] and [`Tokenizer::encode`]; [`Error::ChatTemplate`] too where a
    /// text spells out a control token and the template depends on it, by its length for example.
    pub fn encode(
        &self,
        messages: &[Message],
        options: &ChatOptions,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<u32>> {
        // Two renderings must show one time.
        let time = self.time.unwrap_or_else(SystemTime::now);
        let template = self.clone().with_time(time);
        let text = template.render_with(messages, options)?;
        let mut ids = match template.marked(&text, messages, options, tokenizer)? {
            None => tokenizer.encode_prompt(&text, &[], true)?,
            Some((marked, mark)) => tokenizer.encode_marked(&marked, mark)?,
        };
        if ids.len() > 1 && ids[0] == ids[1] && Some(ids[0]) == tokenizer.bos() {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// The prompt with a mark in front of each control token that is none, and the mark; `None` where
    /// no text spells one out. `text` is the prompt without marks.
    fn marked(
        &self,
        text: &str,
        messages: &[Message],
        options: &ChatOptions,
        tokenizer: &Tokenizer,
    ) -> Result<Option<(String, char)>> {
        let mut all = String::new();
        let mut is_spelled = false;
        map_text(messages, options, &mut |text| {
            all.push_str(text);
            is_spelled |= tokenizer.spells_control(text);
            text.to_owned()
        });
        if !is_spelled {
            return Ok(None);
        }
        let refuse = |message: &str| {
            Err(Error::ChatTemplate {
                message: message.to_owned(),
            })
        };
        let Some(mark) = MARKS
            .clone()
            .find(|&mark| !all.contains(mark) && !text.contains(mark))
        else {
            return refuse("the messages have all 32 noncharacters from U+FDD0 on");
        };
        let (messages, options) = map_text(messages, options, &mut |text| {
            tokenizer.mark_control(text, mark)
        });
        let marked = self.render_with(&messages, &options)?;
        if marked.replace(mark, "") != text {
            return refuse("the prompt depends on a control token that a message spells out");
        }
        Ok(Some((marked, mark)))
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }
}

/// A conversation with `change` made to each text that is not the program's own.
fn map_text(
    messages: &[Message],
    options: &ChatOptions,
    change: &mut impl FnMut(&str) -> String,
) -> (Vec<Message>, ChatOptions) {
    let messages = messages
        .iter()
        .map(|message| message.map_text(change))
        .collect();
    let tools = options.tools.iter().map(|tool| tool.map_text(change));
    let options = ChatOptions {
        tools: tools.collect(),
        ..options.clone()
    };
    (messages, options)
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
