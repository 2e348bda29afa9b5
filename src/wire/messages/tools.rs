//! Tools and the choice among them. Schemas go over byte for byte.

use super::json::{Writer, inside};
use super::to_chat::{Refusal, is_kind, kind_of, list};
use crate::wire::object::Object;

/// Writes `tools`, `tool_choice` and `parallel_tool_calls`. Chat refuses them all where there is no tool.
pub(super) fn write(body: &Object<'_>, chat: &mut Writer) -> Result<(), Refusal> {
    let Some(value) = body.get("tools") else { return Ok(()) };
    let tools: Vec<Object<'_>> = list(value).ok_or_else(|| Refusal::of("tools", "must be a list of objects"))?;
    if tools.is_empty() {
        return Ok(());
    }
    chat.key("tools");
    chat.open('[');
    for (number, tool) in tools.iter().enumerate() {
        one(tool, chat).map_err(|message| Refusal::at("tools", &format!("tools.{number}"), message))?;
    }
    chat.close(']');
    choice(body, chat)
}

fn one(tool: &Object<'_>, chat: &mut Writer) -> Result<(), &'static str> {
    if tool.get("type").is_some() && !is_kind(tool, "custom") {
        return Err(
            "tools the vendor defines need a provider that speaks the messages form itself, and the candidates of this \
             route do not; send tools of the type custom with an input_schema",
        );
    }
    let name = tool.get("name").filter(|name| inside(name).is_some()).ok_or("name must be a string")?;
    let schema = tool.get("input_schema").filter(|schema| schema.get().starts_with('{'));
    let schema = schema.ok_or("input_schema must be an object")?;
    chat.open('{');
    chat.word("type", "function");
    chat.key("function");
    chat.open('{');
    chat.member("name", name.get());
    if let Some(description) = tool.get("description") {
        chat.member("description", description.get());
    }
    chat.member("parameters", schema.get());
    if let Some(strict) = tool.get("strict") {
        chat.member("strict", strict.get());
    }
    chat.close('}');
    chat.close('}');
    Ok(())
}

fn choice(body: &Object<'_>, chat: &mut Writer) -> Result<(), Refusal> {
    const PARAM: &str = "tool_choice";
    let Some(value) = body.get(PARAM) else { return Ok(()) };
    let choice = Object::of(value).map_err(|_| Refusal::of(PARAM, "must be an object"))?;
    match kind_of(&choice).as_deref() {
        Some("auto") => chat.word(PARAM, "auto"),
        Some("any") => chat.word(PARAM, "required"),
        Some("none") => chat.word(PARAM, "none"),
        Some("tool") => {
            let name = choice.get("name").filter(|name| inside(name).is_some());
            let name = name.ok_or_else(|| Refusal::at(PARAM, "tool_choice.name", "must be a string"))?;
            chat.key(PARAM);
            chat.open('{');
            chat.word("type", "function");
            chat.key("function");
            chat.open('{');
            chat.member("name", name.get());
            chat.close('}');
            chat.close('}');
        }
        _ => return Err(Refusal::at(PARAM, "tool_choice.type", "must be one of auto, any, tool, none")),
    }
    if choice.get("disable_parallel_tool_use").is_some_and(|disable| disable.get() == "true") {
        chat.member("parallel_tool_calls", "false");
    }
    Ok(())
}
