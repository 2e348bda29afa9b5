//! The conversation: the system prompt and the turns, block by block.
//!
//! One turn of this form can be several chat messages: what tools returned must follow the calls at once and each have a
//! message of its own. Chat has no place for the thinking of earlier turns, which is left out, and none for pictures a
//! tool returned, which go to the user's message behind it.

use serde_json::value::RawValue;

use super::json::{Writer, inside};
use super::to_chat::{NATIVE_ONLY, Refusal, is_kind, kind_of, list};
use crate::wire::object::{Object, text};

/// Stands in a tool's message where a picture was, which follows in the next one.
const PICTURE: &str = "[image]";

/// Stands before what a tool returned as its failure.
const FAILED: &str = "[error] ";

/// What stands between texts that become one, as JSON spells it.
const LINE: &str = "\\n";

/// A piece of a message. The texts are as JSON spells them, without quotes.
#[derive(Clone, Copy)]
enum Part<'a> {
    Text(&'a str),
    /// A picture itself: its media type and its base64.
    Picture(&'a str, &'a str),
    /// A picture's address.
    Address(&'a str),
}

/// Content: one text, or blocks.
enum Content<'a> {
    Text(&'a str),
    Blocks(Vec<Object<'a>>),
}

/// Writes `messages`.
pub(super) fn write(body: &Object<'_>, chat: &mut Writer) -> Result<(), Refusal> {
    const PARAM: &str = "messages";
    let turns = body.get(PARAM).ok_or_else(|| Refusal::of(PARAM, "is missing, send a list of messages"))?;
    let turns: Vec<Object<'_>> = list(turns).ok_or_else(|| Refusal::of(PARAM, "must be a list of objects"))?;
    chat.key(PARAM);
    chat.open('[');
    if let Some(system) = body.get("system") {
        instruction(system, "system", "system", chat)?;
    }
    for (number, turn) in turns.iter().enumerate() {
        let place = format!("messages.{number}");
        let content = turn.get("content").ok_or_else(|| Refusal::at(PARAM, &place, "content is missing"))?;
        let inner = format!("{place}.content");
        match turn.get("role").and_then(text).as_deref() {
            Some("user") => user(content, &inner, chat)?,
            Some("assistant") => assistant(content, &inner, chat)?,
            Some("system") => instruction(content, PARAM, &inner, chat)?,
            _ => return Err(Refusal::at(PARAM, &place, "role must be one of user, assistant, system")),
        }
    }
    chat.close(']');
    Ok(())
}

/// What the model is told from above, as one text: many servers take no list here.
fn instruction(content: &RawValue, param: &'static str, place: &str, chat: &mut Writer) -> Result<(), Refusal> {
    let wrong = || Refusal::at(param, place, "must be a string or a list of text blocks");
    let texts: Vec<&str> = match contents(content).ok_or_else(wrong)? {
        Content::Text(text) => vec![text],
        Content::Blocks(blocks) => {
            blocks.iter().map(|block| plain(block).ok_or_else(wrong)).collect::<Result<_, _>>()?
        }
    };
    if !texts.is_empty() {
        open(chat, "system");
        chat.key("content");
        chat.joined(with_lines(&texts));
        chat.close('}');
    }
    Ok(())
}

fn user(content: &RawValue, place: &str, chat: &mut Writer) -> Result<(), Refusal> {
    let blocks = match contents(content).ok_or_else(|| no_content(place))? {
        Content::Text(_) => {
            open(chat, "user");
            chat.member("content", content.get());
            chat.close('}');
            return Ok(());
        }
        Content::Blocks(blocks) => blocks,
    };
    let mut pictures = Vec::new();
    let mut parts = Vec::new();
    for (number, block) in blocks.iter().enumerate() {
        let place = format!("{place}.{number}");
        if is_kind(block, "tool_result") {
            pictures.extend(tool_result(block, &place, chat)?);
        } else {
            parts.push(part(block, &place)?);
        }
    }
    pictures.append(&mut parts);
    if !pictures.is_empty() || blocks.is_empty() {
        open(chat, "user");
        chat.key("content");
        write_parts(&pictures, chat);
        chat.close('}');
    }
    Ok(())
}

/// Writes the message of one tool and returns the pictures that do not fit into it.
fn tool_result<'a>(block: &Object<'a>, place: &str, chat: &mut Writer) -> Result<Vec<Part<'a>>, Refusal> {
    let id = string(block, "tool_use_id", place)?;
    let parts = match block.get("content").map(|content| contents(content).ok_or_else(|| no_content(place))) {
        None => Vec::new(),
        Some(content) => match content? {
            Content::Text(text) => vec![Part::Text(text)],
            Content::Blocks(blocks) => {
                let numbered = blocks.iter().enumerate();
                let parts = numbered.map(|(number, block)| part(block, &format!("{place}.content.{number}")));
                parts.collect::<Result<_, _>>()?
            }
        },
    };
    let texts: Vec<&str> = parts.iter().map(|part| if let Part::Text(text) = part { text } else { PICTURE }).collect();
    let failed = block.get("is_error").is_some_and(|failed| failed.get() == "true");
    open(chat, "tool");
    chat.member("tool_call_id", id.get());
    chat.key("content");
    chat.joined(failed.then_some(FAILED).into_iter().chain(with_lines(&texts)));
    chat.close('}');
    Ok(parts.into_iter().filter(|part| !matches!(part, Part::Text(_))).collect())
}

fn assistant(content: &RawValue, place: &str, chat: &mut Writer) -> Result<(), Refusal> {
    let blocks = match contents(content).ok_or_else(|| no_content(place))? {
        Content::Text(_) => {
            open(chat, "assistant");
            chat.member("content", content.get());
            chat.close('}');
            return Ok(());
        }
        Content::Blocks(blocks) => blocks,
    };
    let mut texts = Vec::new();
    let mut calls = Vec::new();
    for (number, block) in blocks.iter().enumerate() {
        let place = format!("{place}.{number}");
        match kind_of(block).as_deref() {
            Some("tool_use") => calls.push((block, place)),
            Some("thinking" | "redacted_thinking") => {}
            _ => texts.push(plain(block).ok_or_else(|| untranslatable(&place))?),
        }
    }
    open(chat, "assistant");
    chat.key("content");
    if texts.is_empty() && !calls.is_empty() {
        chat.raw("null");
    } else {
        chat.joined(texts);
    }
    if !calls.is_empty() {
        chat.key("tool_calls");
        chat.open('[');
        for (block, place) in calls {
            call(block, &place, chat)?;
        }
        chat.close(']');
    }
    chat.close('}');
    Ok(())
}

fn call(block: &Object<'_>, place: &str, chat: &mut Writer) -> Result<(), Refusal> {
    let (id, name) = (string(block, "id", place)?, string(block, "name", place)?);
    let input = block.get("input").filter(|input| input.get().starts_with('{'));
    let input = input.ok_or_else(|| Refusal::at("messages", place, "input must be an object"))?;
    chat.open('{');
    chat.member("id", id.get());
    chat.word("type", "function");
    chat.key("function");
    chat.open('{');
    chat.member("name", name.get());
    chat.word("arguments", input.get());
    chat.close('}');
    chat.close('}');
    Ok(())
}

fn open(chat: &mut Writer, role: &str) {
    chat.open('{');
    chat.word("role", role);
}

fn write_parts(parts: &[Part<'_>], chat: &mut Writer) {
    if let [] | [Part::Text(_)] = parts {
        chat.joined(parts.iter().map(|part| if let Part::Text(text) = part { text } else { "" }));
        return;
    }
    chat.open('[');
    for part in parts {
        chat.open('{');
        match part {
            Part::Text(text) => {
                chat.word("type", "text");
                chat.key("text");
                chat.joined([*text]);
            }
            Part::Picture(media_type, base64) => picture(&["data:", media_type, ";base64,", base64], chat),
            Part::Address(url) => picture(&[url], chat),
        }
        chat.close('}');
    }
    chat.close(']');
}

fn picture(url: &[&str], chat: &mut Writer) {
    chat.word("type", "image_url");
    chat.key("image_url");
    chat.open('{');
    chat.key("url");
    chat.joined(url.iter().copied());
    chat.close('}');
}

fn part<'a>(block: &Object<'a>, place: &str) -> Result<Part<'a>, Refusal> {
    match kind_of(block).as_deref() {
        Some("text") => plain(block).map(Part::Text).ok_or_else(|| untranslatable(place)),
        Some("image") => image(block).ok_or_else(|| {
            Refusal::at("messages", place, "the source of an image must be of the type base64 or url and complete")
        }),
        _ => Err(untranslatable(place)),
    }
}

fn image<'a>(block: &Object<'a>) -> Option<Part<'a>> {
    let source = Object::of(block.get("source")?).ok()?;
    let field = |name: &str| source.get(name).and_then(inside);
    match kind_of(&source)?.as_str() {
        "base64" => Some(Part::Picture(field("media_type")?, field("data")?)),
        "url" => field("url").map(Part::Address),
        _ => None,
    }
}

/// The text of a text block.
fn plain<'a>(block: &Object<'a>) -> Option<&'a str> {
    block.get("text").filter(|_| is_kind(block, "text")).and_then(inside)
}

fn contents(value: &RawValue) -> Option<Content<'_>> {
    inside(value).map(Content::Text).or_else(|| list(value).map(Content::Blocks))
}

fn string<'a>(block: &Object<'a>, name: &str, place: &str) -> Result<&'a RawValue, Refusal> {
    let value = block.get(name).filter(|value| inside(value).is_some());
    value.ok_or_else(|| Refusal::at("messages", place, &format!("{name} must be a string")))
}

fn no_content(place: &str) -> Refusal {
    Refusal::at("messages", place, "content must be a string or a list of blocks")
}

fn untranslatable(place: &str) -> Refusal {
    let message = format!("a block that is none of text, image, tool_use, tool_result and thinking {NATIVE_ONLY}");
    Refusal::at("messages", place, &message)
}

/// The texts with a line end between each two.
fn with_lines<'t>(texts: &[&'t str]) -> impl Iterator<Item = &'t str> {
    texts.iter().enumerate().flat_map(|(number, text)| [if number == 0 { "" } else { LINE }, *text])
}
