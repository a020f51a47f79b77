//! What stands in a conversation.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::json::Json;

/// What someone said in a conversation.
///
/// As JSON it is a message of the chat completions that servers speak.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Message {
    /// Who: `system`, `user`, `assistant`, `tool`, or what else the model's template knows.
    pub role: String,
    /// The text.
    #[serde(default, deserialize_with = "or_empty")]
    pub content: String,
    /// What the model thought before it answered, for templates that show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The tools that the model asks for.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "or_empty"
    )]
    pub tool_calls: Vec<ToolCall>,
    /// The call whose result this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The tool whose result this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// `null` as what is empty: servers write it for the content of a message that only calls tools.
fn or_empty<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Message {
    /// A message of any role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message {
            role: role.into(),
            content: content.into(),
            reasoning_content: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
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

    /// What a tool has answered to `call`.
    pub fn tool_result(call: &ToolCall, content: impl Into<String>) -> Message {
        Message {
            tool_call_id: Some(call.id.clone()),
            name: Some(call.name.clone()),
            ..Message::new("tool", content)
        }
    }

    /// The same message with the tools that it asks for.
    #[must_use]
    pub fn with_tool_calls(mut self, calls: impl Into<Vec<ToolCall>>) -> Message {
        self.tool_calls = calls.into();
        self
    }

    /// The same message with every text that is not the program's own, the role that is, replaced by
    /// what `change` makes of it.
    pub(super) fn map_text(&self, change: &mut impl FnMut(&str) -> String) -> Message {
        let mut optional = |text: &Option<String>| text.as_deref().map(&mut *change);
        Message {
            role: self.role.clone(),
            reasoning_content: optional(&self.reasoning_content),
            tool_call_id: optional(&self.tool_call_id),
            name: optional(&self.name),
            content: change(&self.content),
            tool_calls: self
                .tool_calls
                .iter()
                .map(|call| ToolCall {
                    id: change(&call.id),
                    name: change(&call.name),
                    arguments: call.arguments.map_text(change),
                })
                .collect(),
        }
    }
}

/// A tool that the model asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "CallForm", into = "CallForm")]
pub struct ToolCall {
    /// By which its result is told from others'. Some templates ask for a form: Mistral's for nine
    /// letters and digits.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// What the tool is called with, by name.
    pub arguments: Json,
}

impl ToolCall {
    /// A call of the tool `name`.
    pub fn new(id: impl Into<String>, name: impl Into<String>, arguments: Json) -> ToolCall {
        ToolCall {
            id: id.into(),
            name: name.into(),
            arguments,
        }
    }
}

/// A call as templates and servers spell it.
#[derive(Serialize, Deserialize)]
struct CallForm {
    #[serde(default)]
    id: String,
    #[serde(rename = "type", default = "CallForm::function")]
    kind: String,
    function: FunctionForm,
}

#[derive(Serialize, Deserialize)]
struct FunctionForm {
    name: String,
    arguments: Json,
}

impl CallForm {
    fn function() -> String {
        "function".to_owned()
    }
}

impl From<CallForm> for ToolCall {
    fn from(form: CallForm) -> ToolCall {
        // Servers write the arguments as JSON inside a text.
        let arguments = form.function.arguments;
        let arguments = arguments.of_text().unwrap_or(arguments);
        ToolCall::new(form.id, form.function.name, arguments)
    }
}

impl From<ToolCall> for CallForm {
    fn from(call: ToolCall) -> CallForm {
        CallForm {
            id: call.id,
            kind: CallForm::function(),
            function: FunctionForm {
                name: call.name,
                arguments: call.arguments,
            },
        }
    }
}

/// What a template is told besides the messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatOptions {
    /// The tools that the model may ask for, each as the JSON by which servers are told of them:
    /// `{"type": "function", "function": {"name": .., "description": .., "parameters": ..}}`, where the
    /// parameters are a JSON schema.
    pub tools: Vec<Json>,
    /// Whether the prompt ends where the model's answer begins.
    pub add_generation_prompt: bool,
    /// What else the template asks for, `enable_thinking` for example. What it is told anyway
    /// (`messages`, `bos_token`, ..) cannot be changed here.
    pub variables: BTreeMap<String, Json>,
}

impl Default for ChatOptions {
    /// No tools, no variables, an answer follows.
    fn default() -> Self {
        ChatOptions {
            tools: Vec::new(),
            add_generation_prompt: true,
            variables: BTreeMap::new(),
        }
    }
}
