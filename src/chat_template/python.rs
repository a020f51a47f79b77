//! What Hugging Face `transformers` adds to Jinja2 for chat templates.

use std::borrow::Cow;

use fancy_regex::Regex;
use minijinja::value::{Kwargs, StringInput, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, Value};

/// The template without `{% generation %}` and `{% endgeneration %}`, which mark what the model has
/// written for those who train it: blocks that are always entered stand in their place.
pub(super) fn unmark_generation(source: &str) -> crate::Result<String> {
    let failed = |error: fancy_regex::Error| crate::Error::ChatTemplate {
        message: error.to_string(),
    };
    let mut unmarked = source.to_owned();
    for (tag, by) in [("generation", "if true"), ("endgeneration", "endif")] {
        let regex = Regex::new(&format!(r"(\{{%[-+]?\s*){tag}(\s*[-+]?%\}})")).map_err(failed)?;
        let by = format!("${{1}}{by}${{2}}");
        unmarked = regex
            .try_replacen(&unmarked, 0, by)
            .map_err(failed)?
            .into_owned();
    }
    Ok(unmarked)
}

/// The most bytes of text that one filter or method may write.
const MAX_BYTES: usize = 16 << 20;

/// Containers deeper than this are not written out, so that no template exhausts the stack.
const MAX_DEPTH: usize = 100;

/// The methods of Python's strings, lists and dicts. Those that can make a huge text of small ones are
/// refused it before they begin: the engine counts only what they return.
pub(super) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let length = |value: &Value| value.as_str().map_or(0, str::len);
    if let (Some(text), "strip" | "lstrip" | "rstrip", [chars, ..]) =
        (value.as_str(), name, arguments)
    {
        pay_for_trim(state, text, length(chars))?;
    }
    let n_bytes = match (value.as_str(), name, arguments) {
        (Some(text), "replace", [old, new, ..]) => {
            let n_matches = old.as_str().map_or(0, |old| text.matches(old).count());
            n_matches.saturating_mul(length(new))
        }
        (Some(text), "format", arguments) => {
            let widths: usize = (text.split(|c: char| !c.is_ascii_digit()))
                .map(|digits| {
                    digits
                        .parse()
                        .unwrap_or(usize::from(!digits.is_empty()) * MAX_BYTES)
                })
                .fold(0, usize::saturating_add);
            let longest = arguments.iter().map(length).max().unwrap_or(0);
            let n_fields = text.matches('{').count();
            n_fields.saturating_mul(longest).saturating_add(widths)
        }
        // Lists of pieces, each of which is a value.
        (Some(text), "split" | "rsplit" | "splitlines", arguments) => {
            let n_pieces = match arguments.first().and_then(|separator| separator.as_str()) {
                Some(separator) => text.matches(separator).count(),
                None => text.matches(char::is_whitespace).count(),
            };
            n_pieces.saturating_mul(2 * size_of::<Value>())
        }
        (Some(text), "join", [items]) => items.len().unwrap_or(0).saturating_mul(text.len()),
        _ => 0,
    };
    if n_bytes > MAX_BYTES {
        let message = format!("{name}: more than 16 MiB of text");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
}

/// Each character that goes is looked for among those that may go.
fn pay_for_trim(state: &State, text: &str, n_chars: usize) -> Result<(), Error> {
    let n_looks = text.len().saturating_mul(n_chars);
    state.consume_fuel((n_looks / super::limits::BYTES_PER_FUEL) as u64)
}

/// The filter `trim`.
pub(super) fn trim(
    state: &State,
    value: StringInput<'_>,
    chars: Option<Cow<'_, str>>,
) -> Result<Value, Error> {
    pay_for_trim(state, value.as_str(), chars.as_deref().map_or(0, str::len))?;
    Ok(minijinja::filters::trim(value, chars))
}

/// Writes what `{{ }}` shows.
pub(super) fn show(output: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    super::limits::pay(state, value, false, 1)?;
    minijinja::escape_formatter(output, state, value)
}

/// The filter `string`.
pub(super) fn string(value: &Value) -> String {
    value.to_string()
}

/// `raise_exception(message)`: the template refuses the conversation.
pub(super) fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The filter `tojson`, which is Python's `json.dumps` and not Jinja's own: nothing is escaped for
/// HTML, and characters beyond ASCII stay as they are unless `ensure_ascii` is given.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    if indent.is_some_and(|indent| indent > Json::MAX_INDENT) {
        let message = format!("tojson: `indent` above {}", Json::MAX_INDENT);
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item_separator, key_separator) = match separators.as_deref() {
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => {
            let message = "tojson: `separators` must be two strings";
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
        None if indent.is_some() => (",", ": "),
        None => (", ", ": "),
    };
    let mut json = Json {
        text: String::new(),
        indent,
        item_separator,
        key_separator,
        ensure_ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    json.value(value, 0)?;
    Ok(json.text)
}

struct Json<'a> {
    text: String,
    indent: Option<usize>,
    item_separator: &'a str,
    key_separator: &'a str,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl Json<'_> {
    const MAX_INDENT: usize = 64;

    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if self.text.len() > MAX_BYTES {
            let message = "tojson: more than 16 MiB of text";
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
        if depth > MAX_DEPTH {
            let message = "tojson: nested more than 100 levels deep";
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self
                .text
                .push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.text.push_str(&value.to_string()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list('[', ']', depth, &items, |json, item| {
                    json.value(item, depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.list('{', '}', depth, &keys, |json, key| {
                    json.string(&key.to_string());
                    json.text.push_str(json.key_separator);
                    json.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            kind => {
                let message = format!("tojson: {kind} is not JSON");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        Ok(())
    }

    fn list(
        &mut self,
        open: char,
        close: char,
        depth: usize,
        items: &[Value],
        mut write: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.text.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.text.push_str(self.item_separator);
            }
            self.new_line(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.new_line(depth);
        }
        self.text.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.text.push('\n');
            self.text.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&mut self, string: &str) {
        self.text.push('"');
        for c in string.chars() {
            match c {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{C}' => self.text.push_str("\\f"),
                _ if c < ' ' || (self.ensure_ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.text.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                _ => self.text.push(c),
            }
        }
        self.text.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(expression: &str) -> String {
        let mut environment = minijinja::Environment::new();
        environment.add_filter("tojson", tojson);
        environment
            .render_str(&format!("{{{{ {expression} }}}}"), ())
            .unwrap()
    }

    /// Expected values from Python 3: `json.dumps(value, ensure_ascii=False, ..)`.
    #[test]
    fn tojson_writes_what_python_writes() {
        let value = r#"{"b": [1, 2.5, true, none], "a": {"é<&>'🦀": "x\n\"\\"}, "c": [], "d": {}}"#;
        assert_eq!(
            json(&format!("{value}|tojson")),
            r#"{"b": [1, 2.5, true, null], "a": {"é<&>'🦀": "x\n\"\\"}, "c": [], "d": {}}"#
        );
        assert_eq!(
            json(&format!(
                "{value}|tojson(sort_keys=true, ensure_ascii=true)"
            )),
            r#"{"a": {"\u00e9<&>'\ud83e\udd80": "x\n\"\\"}, "b": [1, 2.5, true, null], "c": [], "d": {}}"#
        );
        assert_eq!(
            json("[1, {'a': []}]|tojson(indent=2)"),
            "[\n  1,\n  {\n    \"a\": []\n  }\n]"
        );
        assert_eq!(
            json("[1, {'a': 2}]|tojson(separators=(',', ':'))"),
            r#"[1,{"a":2}]"#
        );
    }
}
