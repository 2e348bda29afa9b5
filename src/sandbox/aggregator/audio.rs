//! Transcripts, translations and speech of the simulated provider. It listens to nothing: a transcript says how much it
//! was sent, and its speech is a tone of the right format that names the provider.
//!
//! The form is read here a second time, from all of its bytes, and not with the reader the proxy uses.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};

use super::ask::own_fault;
use super::speech::Chunks;
use crate::sandbox::fault::Fault;
use crate::wire::sse::Event;

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream; charset=utf-8";
/// Pieces of one speech, and how large each is.
const PIECES: usize = 12;
const PIECE_BYTES: usize = 2_048;

/// A request of one of these kinds.
pub(super) struct Audio {
    pub(super) model: String,
    pub(super) fault: Option<Fault>,
    stream: bool,
    kind: Kind,
    provider: String,
}

enum Kind {
    /// A transcript in this format, of a file of so many bytes.
    Transcript { format: String, heard: String },
    /// Sound of this type.
    Speech { format: String },
}

/// How an answer leaves.
pub(super) enum Told {
    /// At once, with a length.
    Whole(Bytes),
    /// Piece by piece.
    Pieces(Chunks),
}

impl Audio {
    /// True if `operation` is one of these.
    pub(super) fn knows(operation: &str) -> bool {
        matches!(operation, "audio/transcriptions" | "audio/translations" | "audio/speech")
    }

    /// Reads a request, or says what to answer with 400.
    pub(super) fn read(operation: &str, content_type: &str, body: &[u8], provider: &str) -> Result<Self, String> {
        if operation == "audio/speech" { speech(body, provider) } else { transcript(content_type, body, provider) }
    }

    /// The answer's media type.
    pub(super) fn media_type(&self) -> &'static str {
        match &self.kind {
            _ if self.stream => EVENTS,
            Kind::Transcript { format, .. } => match format.as_str() {
                "text" | "srt" | "vtt" => "text/plain; charset=utf-8",
                _ => JSON,
            },
            Kind::Speech { format } => match format.as_str() {
                "wav" => "audio/wav",
                "pcm" => "audio/pcm",
                "flac" => "audio/flac",
                "opus" => "audio/opus",
                "aac" => "audio/aac",
                _ => "audio/mpeg",
            },
        }
    }

    /// The answer.
    pub(super) fn answer(&self) -> Told {
        match &self.kind {
            Kind::Transcript { .. } if self.stream => Told::Pieces(self.transcript_events()),
            Kind::Transcript { format, .. } => Told::Whole(self.transcript_as(format)),
            Kind::Speech { .. } if self.stream => Told::Pieces(self.speech_events()),
            Kind::Speech { .. } => Told::Pieces(self.sound()),
        }
    }

    /// An error that comes with status 200.
    pub(super) fn error(&self, status: u16) -> Bytes {
        let message = format!("simulated failure with status {status}");
        let error = json!({"error": {"message": message, "type": "server_error", "code": status}}).to_string();
        if self.stream { Event::from_data(error.as_bytes()).raw().clone() } else { error.into() }
    }

    fn text(&self) -> String {
        let heard = if let Kind::Transcript { heard, .. } = &self.kind { heard } else { "" };
        format!("This is {}, simulating {}. I heard {heard}.", self.provider, self.model)
    }

    fn transcript_as(&self, format: &str) -> Bytes {
        let text = self.text();
        let usage = json!({"type": "tokens", "input_tokens": 10, "output_tokens": 12, "total_tokens": 22});
        match format {
            "text" => format!("{text}\n"),
            "srt" => format!("1\n00:00:00,000 --> 00:00:01,000\n{text}\n\n"),
            "vtt" => format!("WEBVTT\n\n00:00:00.000 --> 00:00:01.000\n{text}\n\n"),
            "verbose_json" => json!({"task": "transcribe", "language": "english", "duration": 1.0, "text": text,
                "segments": [{"id": 0, "seek": 0, "start": 0.0, "end": 1.0, "text": text, "tokens": [1],
                    "temperature": 0.0, "avg_logprob": -0.1, "compression_ratio": 1.0, "no_speech_prob": 0.01}],
                "usage": {"type": "duration", "seconds": 1}})
            .to_string(),
            _ => json!({"text": text, "usage": usage}).to_string(),
        }
        .into()
    }

    fn transcript_events(&self) -> Chunks {
        let event = |event: &Value| Event::from_data(event.to_string().as_bytes()).raw().clone();
        let text = self.text();
        let deltas = text.split_inclusive(' ').map(|word| json!({"type": "transcript.text.delta", "delta": word}));
        let usage = json!({"type": "tokens", "input_tokens": 10, "output_tokens": 12, "total_tokens": 22});
        let done = json!({"type": "transcript.text.done", "text": text, "usage": usage});
        Chunks { start: Bytes::new(), content: deltas.map(|delta| event(&delta)).collect(), end: vec![event(&done)] }
    }

    fn speech_events(&self) -> Chunks {
        use base64::Engine as _;
        let event = |event: &Value| Event::from_data(event.to_string().as_bytes()).raw().clone();
        let sound = self.sound().content.into_iter().map(|piece| {
            let audio = base64::engine::general_purpose::STANDARD.encode(&piece);
            event(&json!({"type": "speech.audio.delta", "audio": audio}))
        });
        let usage = json!({"input_tokens": 5, "output_tokens": 60, "total_tokens": 65});
        let done = event(&json!({"type": "speech.audio.done", "usage": usage}));
        Chunks { start: Bytes::new(), content: sound.collect(), end: vec![done] }
    }

    fn sound(&self) -> Chunks {
        let name = format!("SOUND of {}, simulating {} ", self.provider, self.model);
        let piece = |number: usize| {
            let tone = (0..PIECE_BYTES).map(|at| u8::try_from((number * 31 + at * 7) % 256).unwrap_or_default());
            if number == 0 { name.bytes().chain(tone).collect::<Bytes>() } else { tone.collect() }
        };
        Chunks { start: Bytes::new(), content: (0..PIECES).map(piece).collect(), end: Vec::new() }
    }
}

fn speech(body: &[u8], provider: &str) -> Result<Audio, String> {
    let body: Value = serde_json::from_slice(body).map_err(|_| "the body must be a JSON object")?;
    let text = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_owned);
    let model = text("model").ok_or("model must be a string")?;
    for wanted in ["input", "voice"] {
        if body.get(wanted).is_none_or(Value::is_null) {
            return Err(format!("{wanted} is missing"));
        }
    }
    let fault = own_fault(body.get("sandbox_fault"), provider)?;
    let stream = text("stream_format").as_deref() == Some("sse");
    let format = text("response_format").unwrap_or_else(|| "mp3".to_owned());
    Ok(Audio { model, fault, stream, kind: Kind::Speech { format }, provider: provider.to_owned() })
}

fn transcript(content_type: &str, body: &[u8], provider: &str) -> Result<Audio, String> {
    let fields = form(content_type, body).ok_or("the body must be a form")?;
    let text = |name: &str| fields.get(name).map(|value| String::from_utf8_lossy(value).into_owned());
    let model = text("model").ok_or("model is missing")?;
    let file = fields.get("file").ok_or("file is missing")?;
    // What clients make of a nested object in a form.
    let fault = text("sandbox_fault").or_else(|| text(&format!("sandbox_fault[{provider}]")));
    let fault = own_fault(fault.map(Value::String).as_ref(), provider)?;
    let format = text("response_format").unwrap_or_else(|| "json".to_owned());
    let stream = text("stream").is_some_and(|wish| wish.eq_ignore_ascii_case("true"));
    let heard = format!("{} bytes", file.len());
    Ok(Audio { model, fault, stream, kind: Kind::Transcript { format, heard }, provider: provider.to_owned() })
}

/// All parts of a form by name.
fn form<'b>(content_type: &str, body: &'b [u8]) -> Option<BTreeMap<String, &'b [u8]>> {
    let boundary = content_type.split_once("boundary=")?.1.trim_matches('"');
    let delimiter = format!("--{boundary}");
    let starts: Vec<usize> = memchr::memmem::find_iter(body, delimiter.as_bytes()).collect();
    if !body.get(*starts.last()?..)?.starts_with(format!("{delimiter}--").as_bytes()) {
        return None;
    }
    let mut fields = BTreeMap::new();
    for pair in starts.windows(2) {
        let [from, to] = pair else { continue };
        let part = body.get(from + delimiter.len() + 2..to.checked_sub(2)?)?;
        let head = memchr::memmem::find(part, b"\r\n\r\n")?;
        let text = String::from_utf8_lossy(part.get(..head)?).into_owned();
        let name = text.split_once("name=\"")?.1.split_once('"')?.0.to_owned();
        fields.insert(name, part.get(head + 4..)?);
    }
    Some(fields)
}
