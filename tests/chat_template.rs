//! Chat templates: messages to prompt text, as the Python reference renders them.

mod support;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value as Json;
use support::shared;
use trueshot::gguf::Metadata;
use trueshot::{ChatTemplate, Error, Message};

fn render(source: &str, messages: &[Message]) -> trueshot::Result<String> {
    ChatTemplate::new(source, "<s>", "</s>")?.render(messages, true)
}

#[test]
fn blocks_on_lines_of_their_own_leave_no_trace() {
    let source = "\
{{ bos_token }}
{%- for message in messages %}
    {% if message['role'] == 'user' %}
[{{ message.content.strip() }}]
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
answer:
{% endif %}
";
    let messages = [Message::system("x"), Message::user(" Hi <b>'&' ")];
    assert_eq!(
        render(source, &messages).unwrap(),
        "<s>[Hi <b>'&']\nanswer:\n"
    );
}

#[test]
fn pythons_methods_namespaces_and_loop_controls_work() {
    let source = "\
{%- set state = namespace(n=0) -%}
{%- for m in messages -%}
{%- if m.role == 'system' -%}{%- continue -%}{%- endif -%}
{%- set state.n = state.n + 1 -%}
{{ m.get('name', 'nobody') }}:{{ m.content.split(' ')[-1].upper() }}{{ m.items()|list|length }};
{%- if state.n == 2 -%}{%- break -%}{%- endif -%}
{%- endfor -%}
{{ state.n }} {{ messages[0]|tojson }} {{ messages[1:]|length }}";
    let messages =
        ["system", "user", "assistant", "user"].map(|role| Message::new(role, "a 'b' <c>"));
    assert_eq!(
        render(source, &messages).unwrap(),
        "nobody:<C>2;nobody:<C>2;2 {\"role\": \"system\", \"content\": \"a 'b' <c>\"} 3"
    );
}

#[test]
fn marks_around_what_the_model_wrote_are_passed_over() {
    let source = "a\n{%- generation -%}\nb\n{% endgeneration %}\nc{{ 1 + }}";
    let error = render(source, &[]).unwrap_err().to_string();
    assert!(error.starts_with("chat template: line 5:"), "{error}");
    let source = source.replace("{{ 1 + }}", "");
    assert_eq!(render(&source, &[]).unwrap(), "ab\nc");
}

#[test]
fn failures_are_errors_with_the_line() {
    for (source, expected) in [
        (
            "\n\n{{ raise_exception('no ' ~ messages[0].role) }}",
            "line 3: no user",
        ),
        ("\n{% for %}", "line 2: unexpected"),
        ("{{ nothing.at.all }}", "line 1: "),
        (
            "{{ strftime_now('%Q') }}",
            "line 1: strftime_now: `%Q` is not supported",
        ),
        ("{{ 1|unheard_of }}", "line 1: "),
    ] {
        let error = render(source, &[Message::user("Hi")]).unwrap_err();
        assert!(matches!(error, Error::ChatTemplate { .. }), "{error:?}");
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("chat template: {expected}")),
            "{source:?}: {text}"
        );
    }
}

#[test]
fn a_hostile_template_comes_to_an_end() {
    for source in [
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ j }}{% endfor %}{% endfor %}",
        "{% set s = 'x' * 4000000000 %}{{ s }}",
        "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ] {
        let error = render(source, &[]).unwrap_err();
        assert!(
            matches!(error, Error::ChatTemplate { .. }),
            "{source}: {error:?}"
        );
    }
}

#[test]
fn a_file_without_a_template_has_none() {
    let mut metadata = Metadata::default();
    metadata.insert("tokenizer.ggml.model", "llama");
    metadata.insert(
        "tokenizer.ggml.tokens",
        ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec(),
    );
    metadata.insert("tokenizer.ggml.scores", vec![0.0_f32; 3]);
    let tokenizer = trueshot::Tokenizer::from_metadata(&metadata).unwrap();
    assert!(
        ChatTemplate::from_metadata(&metadata, &tokenizer)
            .unwrap()
            .is_none()
    );

    let source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}";
    metadata.insert("tokenizer.chat_template", source);
    let template = ChatTemplate::from_metadata(&metadata, &tokenizer)
        .unwrap()
        .unwrap();
    assert_eq!(template.source(), source);
    assert_eq!(
        template.render(&[Message::user("Hi")], false).unwrap(),
        "<s>Hi</s>"
    );

    metadata.insert("tokenizer.chat_template", 3_u32);
    let error = ChatTemplate::from_metadata(&metadata, &tokenizer).unwrap_err();
    assert!(matches!(error, Error::InvalidModel { .. }), "{error:?}");
}

#[test]
fn the_template_of_smollm2_makes_its_prompt() {
    let path = support::model::smollm2().unwrap();
    let gguf = trueshot::gguf::Gguf::open(path).unwrap();
    let tokenizer = trueshot::Tokenizer::from_metadata(gguf.metadata()).unwrap();
    let template = ChatTemplate::from_metadata(gguf.metadata(), &tokenizer)
        .unwrap()
        .unwrap();
    let prompt = template
        .render(&[Message::user("What is the capital of France?")], true)
        .unwrap();
    assert_eq!(
        prompt,
        "<|im_start|>system\n\
         You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nWhat is the capital of France?<|im_end|>\n\
         <|im_start|>assistant\n"
    );
}

/// 2026-01-02 03:04:05 UTC, the time at which the expected texts were made.
fn recorded_time() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_767_323_045)
}

#[test]
fn templates_of_real_models_render_as_in_python() {
    let Some(folder) = shared("templates") else {
        return;
    };
    let facts = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let facts: Json = serde_json::from_str(&facts).unwrap();
    let text = |value: &Json| value.as_str().unwrap().to_owned();
    let mut n_cases = 0;
    let mut failures = Vec::new();
    for (file, expected) in facts["expected"].as_object().unwrap() {
        let source = std::fs::read_to_string(folder.join(file)).unwrap();
        let template = ChatTemplate::new(
            &source,
            &text(&facts["bos_token"]),
            &text(&facts["eos_token"]),
        )
        .map(|template| template.with_time(recorded_time()));
        for (case, expected) in expected.as_object().unwrap() {
            let input = &facts["cases"][case];
            if input.get("tools").is_some() {
                continue;
            }
            let messages: Vec<Message> = serde_json::from_value(input["messages"].clone()).unwrap();
            let add_generation_prompt = input["add_generation_prompt"].as_bool().unwrap();
            let found = match &template {
                Ok(template) => template.render(&messages, add_generation_prompt),
                Err(error) => Err(Error::ChatTemplate {
                    message: error.to_string(),
                }),
            };
            n_cases += 1;
            match (found, expected.get("text")) {
                (Ok(found), Some(expected)) if found == text(expected) => {}
                (Err(_), None) => {}
                (found, _) => {
                    failures.push(format!("{file} {case}: {found:?}, expected {expected}"))
                }
            }
        }
    }
    println!("{} of {n_cases} cases agree", n_cases - failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
