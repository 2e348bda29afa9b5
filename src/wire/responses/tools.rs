//! The tools of a request, in the shape of chat completions. Only functions have one there.

use std::collections::HashSet;

use serde::Serialize;
use serde_json::value::RawValue;

use super::to_chat::{HostedTools, Refusal, list, named};
use crate::wire::object::{Object, text};

/// Tools that providers run, by the name under which their leaving out is told.
const HOSTED: &[(&str, &str)] = &[
    ("web_search", "tools.web_search"),
    ("web_search_preview", "tools.web_search"),
    ("file_search", "tools.file_search"),
    ("code_interpreter", "tools.code_interpreter"),
    ("image_generation", "tools.image_generation"),
    ("computer_use_preview", "tools.computer_use"),
    ("computer", "tools.computer_use"),
    ("mcp", "tools.mcp"),
    ("local_shell", "tools.local_shell"),
    ("shell", "tools.shell"),
    ("apply_patch", "tools.apply_patch"),
    ("custom", "tools.custom"),
    ("namespace", "tools.namespace"),
    ("tool_search", "tools.tool_search"),
];

/// The tools and how they are to be chosen; empty if there are none.
#[derive(Default)]
pub(super) struct Tools<'a> {
    pub(super) functions: Vec<Tool<'a>>,
    pub(super) choice: Option<Choice<'a>>,
}

#[derive(Serialize)]
pub(super) struct Tool<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    name: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<&'a RawValue>,
}

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Choice<'a> {
    Mode(&'a RawValue),
    Function {
        #[serde(rename = "type")]
        kind: &'static str,
        function: Name<'a>,
    },
}

#[derive(Serialize)]
pub(super) struct Name<'a> {
    name: &'a RawValue,
}

impl<'a> Tools<'a> {
    /// Reads `tools` and `tool_choice`.
    pub(super) fn read(
        request: &Object<'a>,
        hosted: HostedTools,
        left_out: &mut Vec<&'static str>,
    ) -> Result<Self, Refusal> {
        let mut functions = Vec::new();
        for (number, tool) in list(request, "tools")?.into_iter().enumerate() {
            let tool = Object::of(tool)
                .map_err(|_| Refusal::malformed("a tool must be an object", format!("tools[{number}]")))?;
            let kind = tool.get("type").and_then(text).unwrap_or_default();
            if kind == "function" {
                functions.push(function(&tool, number)?);
            } else if hosted == HostedTools::LeaveOut {
                left_out.push(HOSTED.iter().find(|(known, _)| *known == kind).map_or("tools", |(_, told)| told));
            } else {
                return Err(Refusal::needs_native(
                    "this model's provider takes function tools only, leave other tools out or use another model",
                    format!("tools[{number}].type"),
                ));
            }
        }
        choose(request, functions)
    }
}

fn function<'a>(tool: &Object<'a>, number: usize) -> Result<Tool<'a>, Refusal> {
    let name = tool.get("name").filter(|name| text(name).is_some());
    let name =
        name.ok_or_else(|| Refusal::malformed("a function tool must have a name", format!("tools[{number}].name")))?;
    let function = Function {
        name,
        description: tool.get("description"),
        parameters: tool.get("parameters"),
        strict: tool.get("strict"),
    };
    Ok(Tool { kind: "function", function })
}

/// Chat completions refuse a choice where there is nothing to choose from.
fn choose<'a>(request: &Object<'a>, functions: Vec<Tool<'a>>) -> Result<Tools<'a>, Refusal> {
    const PARAM: &str = "tool_choice";
    let Some(asked) = request.get(PARAM) else { return Ok(Tools { functions, choice: None }) };
    let tools = match Object::of(asked) {
        Ok(asked) => choose_one(&asked, functions)?,
        Err(_) => match text(asked).as_deref() {
            Some("auto" | "none") if functions.is_empty() => return Ok(Tools::default()),
            Some("auto" | "none" | "required") => Tools { functions, choice: Some(Choice::Mode(asked)) },
            _ => return Err(Refusal::malformed("tool_choice must be auto, none, required or an object", PARAM)),
        },
    };
    if tools.functions.is_empty() && tools.choice.is_some() {
        return Err(Refusal::malformed("tool_choice asks for a tool and there is none to call", PARAM));
    }
    Ok(tools)
}

fn choose_one<'a>(asked: &Object<'a>, functions: Vec<Tool<'a>>) -> Result<Tools<'a>, Refusal> {
    match asked.get("type").and_then(text).as_deref() {
        Some("function") => {
            let name = asked.get("name").filter(|name| text(name).is_some());
            let name = name.ok_or_else(|| Refusal::malformed("name the function to call", "tool_choice.name"))?;
            let choice = Choice::Function { kind: "function", function: Name { name } };
            Ok(Tools { functions, choice: Some(choice) })
        }
        Some("allowed_tools") => allowed(asked, functions),
        _ => {
            Err(Refusal::needs_native("this model's provider can be asked for function tools only", "tool_choice.type"))
        }
    }
}

/// Few chat providers know this choice; offering only the allowed ones means the same to all.
fn allowed<'a>(asked: &Object<'a>, mut functions: Vec<Tool<'a>>) -> Result<Tools<'a>, Refusal> {
    let names: HashSet<String> = list(asked, "tools")?.into_iter().filter_map(|tool| named(tool, "name")).collect();
    functions.retain(|tool| text(tool.function.name).is_some_and(|name| names.contains(&name)));
    let mode = asked.get("mode").filter(|mode| matches!(text(mode).as_deref(), Some("auto" | "required")));
    let mode = mode.ok_or_else(|| Refusal::malformed("mode must be auto or required", "tool_choice.mode"))?;
    let optional = text(mode).as_deref() == Some("auto") && functions.is_empty();
    Ok(Tools { functions, choice: (!optional).then_some(Choice::Mode(mode)) })
}
