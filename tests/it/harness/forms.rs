//! The three forms of a streamed answer as providers write them, in events that tests put together.

use serde_json::{Value, json};

/// The head of a streamed answer.
pub const BEGIN: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
/// What `alpha` offers when it has every form.
pub const NATIVE: &str = r#""chat.completions", "completions", "responses", "messages""#;

/// One chunk of a body in chunks.
pub fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// One of the three forms, as its providers stream it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Form {
    Chat,
    Responses,
    Messages,
}

impl Form {
    /// Every form.
    pub const ALL: [Self; 3] = [Self::Chat, Self::Responses, Self::Messages];

    /// Where it is asked.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Responses => "/v1/responses",
            Self::Messages => "/v1/messages",
        }
    }

    /// A streamed call of `model`, with usage.
    pub fn body(self, model: &str) -> Value {
        let said = json!([{ "role": "user", "content": "hello" }]);
        match self {
            Self::Chat => {
                json!({ "model": model, "stream": true, "stream_options": { "include_usage": true }, "messages": said })
            }
            Self::Responses => json!({ "model": model, "stream": true, "input": "hello" }),
            Self::Messages => json!({ "model": model, "stream": true, "max_tokens": 99, "messages": said }),
        }
    }

    /// What comes before the first word.
    pub fn opening(self) -> &'static str {
        match self {
            Self::Chat => {
                "data: {\"id\":\"c1\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n"
            }
            Self::Responses => concat!(
                "event: response.created\ndata: {\"type\":\"response.created\",\"sequence_number\":0,",
                "\"response\":{\"id\":\"r1\",\"status\":\"in_progress\",\"output\":[],\"error\":null,\"usage\":null}}\n\n",
                "event: response.output_item.added\ndata: {\"type\":\"response.output_item.added\",\"sequence_number\":1,",
                "\"output_index\":0,\"item\":{\"id\":\"m1\",\"type\":\"message\",\"role\":\"assistant\",\"content\":[]}}\n\n",
            ),
            Self::Messages => concat!(
                "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m1\",\"type\":\"message\",",
                "\"role\":\"assistant\",\"content\":[],\"stop_reason\":null,\"usage\":{\"input_tokens\":3,\"output_tokens\":1}}}\n\n",
                "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,",
                "\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n",
                "event: ping\ndata: {\"type\": \"ping\"}\n\n",
            ),
        }
    }

    /// An event with a word of content.
    pub fn word(self, word: &str) -> String {
        match self {
            Self::Chat => format!(
                "data: {{\"id\":\"c1\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{word}\"}}}}]}}\n\n"
            ),
            Self::Responses => format!(
                "event: response.output_text.delta\ndata: {{\"type\":\"response.output_text.delta\",\"item_id\":\"m1\",\
                 \"output_index\":0,\"content_index\":0,\"delta\":\"{word}\"}}\n\n"
            ),
            Self::Messages => format!(
                "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\
                 \"delta\":{{\"type\":\"text_delta\",\"text\":\"{word}\"}}}}\n\n"
            ),
        }
    }

    /// What comes after the last word.
    pub fn ending(self) -> &'static str {
        match self {
            Self::Chat => concat!(
                "data: {\"id\":\"c1\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":null}\n\n",
                "data: {\"id\":\"c1\",\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n",
                "data: [DONE]\n\n",
            ),
            Self::Responses => concat!(
                "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"r1\",",
                "\"status\":\"completed\",\"error\":null,\"output\":[{\"type\":\"message\",\"content\":[",
                "{\"type\":\"output_text\",\"text\":\"w\"}]}],\"usage\":{\"input_tokens\":3,\"output_tokens\":4}}}\n\n",
            ),
            Self::Messages => concat!(
                "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n",
                "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},",
                "\"usage\":{\"output_tokens\":4}}\n\n",
                "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
            ),
        }
    }
}
