//! `/v1/responses`: what an answer says again of its request, and what held where the request said nothing.

use emberlm::model::sampling::SamplingConfig;
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::{Fields, found, whole};
use super::limits;

/// Fields of a request as OpenAI's response object has them.
#[derive(Clone, Debug, Default)]
pub struct Echo(Map<String, Value>);

impl Echo {
    /// Those of a body that was made that of a chat. `sampling` is what it came to, with the server's own defaults.
    ///
    /// # Errors
    /// 400 with the first field that cannot be said again.
    pub fn of(map: &Map<String, Value>, sampling: &SamplingConfig) -> Result<Self, ApiError> {
        let fields = Fields::root(map);
        let number = |name: &str, held: f32| fields.get(name).cloned().unwrap_or_else(|| decimal(held));
        let text = |name: &str| fields.text(name);
        let bound = fields.get("max_output_tokens").and_then(whole);
        let echo = json!({
            "instructions": text("instructions")?, "max_output_tokens": bound, "metadata": metadata(fields)?,
            "temperature": number("temperature", sampling.temperature), "top_p": number("top_p", sampling.top_p),
            "tools": tools(fields)?, "tool_choice": tool_choice(fields),
            "parallel_tool_calls": fields.bool("parallel_tool_calls")?.unwrap_or(true),
            "max_tool_calls": fields.integer("max_tool_calls", 0..=u64::MAX)?,
            "text": text_config(fields)?, "reasoning": reasoning(fields)?,
            "truncation": text("truncation")?.unwrap_or("disabled"),
            // Other ones are refused.
            "top_logprobs": 0,
            "user": text("user")?, "safety_identifier": text("safety_identifier")?,
            "prompt_cache_key": text("prompt_cache_key")?,
            // Whatever a request says: nothing is kept, nothing runs later, and all requests are served alike.
            "store": false, "background": false, "previous_response_id": null, "service_tier": "default",
        });
        Ok(match echo {
            Value::Object(echo) => Self(echo),
            _ => Self::default(),
        })
    }

    /// Adds them to an answer.
    pub fn add_to(&self, response: &mut Map<String, Value>) {
        response.extend(self.0.clone());
    }
}

/// A number as it is written, without the further digits that it has in 64 bits.
fn decimal(x: f32) -> Value {
    x.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// Texts by name, as many and as long as OpenAI's API has them.
fn metadata(fields: Fields<'_>) -> Result<Map<String, Value>, ApiError> {
    let map = fields.object("metadata")?.cloned().unwrap_or_default();
    let (pairs, key_chars, value_chars) = (limits::METADATA, limits::METADATA_KEY, limits::METADATA_VALUE);
    if map.len() > pairs {
        return Err(fields.wrong("metadata", format!("{} entries, but at most {pairs} are taken", map.len())));
    }
    let is_longer = |text: &str, most: usize| text.chars().nth(most).is_some();
    for (key, value) in &map {
        let Some(text) = value.as_str() else {
            return Err(fields.wrong("metadata", format!("{key:.80?}: expected a text, found {}", found(value))));
        };
        if is_longer(key, key_chars) || is_longer(text, value_chars) {
            let most = format!("at most {key_chars} characters are taken, and {value_chars} of its text");
            return Err(fields.wrong("metadata", format!("{key:.80?}: {most}")));
        }
    }
    Ok(map)
}

/// Functions in the form of this API, with all that its clients expect of one; other tools as they are.
fn tools(fields: Fields<'_>) -> Result<Vec<Value>, ApiError> {
    let mut tools = Vec::new();
    for (i, value) in fields.list("tools")?.unwrap_or_default().iter().enumerate() {
        let Some(map) = value.as_object() else { continue };
        if map.get("type").and_then(Value::as_str) != Some("function") {
            tools.push(value.clone());
            continue;
        }
        // As chats have it.
        let (path, map) = match map.get("function").and_then(Value::as_object) {
            Some(inner) => (format!("tools[{i}].function"), inner),
            None => (format!("tools[{i}]"), map),
        };
        let function = Fields::at(map, &path);
        // Calls are kept to a schema where one is demanded, not where the model may choose: nothing strict is promised.
        let strict = function.bool("strict")?.unwrap_or(false);
        let description = function.text("description")?;
        let mut told = map.clone();
        told.extend([
            ("type".to_owned(), "function".into()),
            ("description".to_owned(), description.into()),
            ("parameters".to_owned(), function.get("parameters").cloned().unwrap_or_default()),
            ("strict".to_owned(), strict.into()),
        ]);
        tools.push(told.into());
    }
    Ok(tools)
}

fn tool_choice(fields: Fields<'_>) -> Value {
    let choice = fields.get("tool_choice");
    match choice.and_then(|choice| choice.pointer("/function/name")) {
        // As chats have it.
        Some(name) => json!({"type": "function", "name": name}),
        None => choice.cloned().unwrap_or_else(|| "auto".into()),
    }
}

/// The form of the answer: any text, unless the request says another.
fn text_config(fields: Fields<'_>) -> Result<Map<String, Value>, ApiError> {
    let mut config = fields.object("text")?.cloned().unwrap_or_default();
    let inner = Fields::at(&config, "text");
    let mut format = inner.object("format")?.cloned().unwrap_or_default();
    let verbosity = inner.text("verbosity")?.unwrap_or("medium").to_owned();
    format.entry("type").or_insert("text".into());
    config.extend([("format".to_owned(), format.into()), ("verbosity".to_owned(), verbosity.into())]);
    Ok(config)
}

fn reasoning(fields: Fields<'_>) -> Result<Map<String, Value>, ApiError> {
    let mut reasoning = fields.object("reasoning")?.cloned().unwrap_or_default();
    for name in ["effort", "summary"] {
        Fields::at(&reasoning, "reasoning").text(name)?;
        reasoning.entry(name).or_insert(Value::Null);
    }
    Ok(reasoning)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo(body: Value) -> Result<Value, String> {
        let sampling = SamplingConfig { temperature: 0.7, ..SamplingConfig::default() };
        let echo = Echo::of(body.as_object().unwrap(), &sampling).map_err(|error| error.message)?;
        Ok(Value::Object(echo.0))
    }

    #[test]
    fn what_a_request_does_not_say_is_what_held() {
        assert_eq!(
            echo(json!({"input": "a"})).unwrap(),
            json!({
                "instructions": null, "max_output_tokens": null, "metadata": {}, "temperature": 0.7, "top_p": 1.0, "tools": [],
                "tool_choice": "auto", "parallel_tool_calls": true, "max_tool_calls": null,
                "text": {"format": {"type": "text"}, "verbosity": "medium"}, "reasoning": {"effort": null, "summary": null},
                "truncation": "disabled", "top_logprobs": 0, "user": null, "safety_identifier": null, "prompt_cache_key": null,
                "store": false, "background": false, "previous_response_id": null, "service_tier": "default",
            })
        );
    }

    #[test]
    fn tools_and_choices_of_chats_are_told_in_the_form_of_responses() {
        let parameters = json!({"type": "object"});
        let got = echo(json!({
            "tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}, {"type": "web_search"}, 7],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
        }))
        .unwrap();
        let function =
            json!({"type": "function", "name": "f", "description": null, "parameters": parameters, "strict": false});
        assert_eq!(got["tools"], json!([function, {"type": "web_search"}]));
        assert_eq!(got["tool_choice"], json!({"type": "function", "name": "f"}));
    }

    #[test]
    fn what_cannot_be_said_again_is_named() {
        let many: Map<String, Value> = (0..17).map(|i| (i.to_string(), "".into())).collect();
        for (body, part) in [
            (json!({"metadata": 7}), "metadata: expected an object, found 7"),
            (json!({"metadata": {"a": 7}}), "metadata: \"a\": expected a text, found 7"),
            (json!({ "metadata": many }), "metadata: 17 entries"),
            (json!({"metadata": {"a": "é".repeat(513)}}), "512 of its text"),
            (json!({"user": 7}), "user: expected a text, found 7"),
            (json!({"tools": [{"type": "function", "name": "f", "strict": 1}]}), "tools[0].strict: "),
            (json!({"reasoning": {"summary": []}}), "reasoning.summary: "),
            (json!({"text": {"verbosity": 1}}), "text.verbosity: "),
        ] {
            let message = echo(body).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
        assert!(echo(json!({"metadata": {"é".repeat(64): "é".repeat(512)}})).is_ok());
    }
}
