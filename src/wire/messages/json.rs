//! JSON written from pieces that are JSON already.
//!
//! Texts and numbers go from one form into the other as they were spelt, so they are neither decoded nor copied more than
//! once, however large an image is. Only shapes are made here; what a piece means is the caller's.

use serde::Serialize;
use serde_json::value::RawValue;

/// A JSON text under construction. It puts the commas.
#[derive(Default)]
pub(super) struct Writer {
    text: String,
}

impl Writer {
    /// Begins an object or a list.
    pub(super) fn open(&mut self, bracket: char) {
        self.separate();
        self.text.push(bracket);
    }

    pub(super) fn close(&mut self, bracket: char) {
        self.text.push(bracket);
    }

    /// A member's name, to be followed by its value.
    pub(super) fn key(&mut self, name: &str) {
        self.separate();
        self.text.push_str(&quoted(name));
        self.text.push(':');
    }

    /// A value that is JSON already.
    pub(super) fn raw(&mut self, json: &str) {
        self.separate();
        self.text.push_str(json);
    }

    /// A value that is text.
    pub(super) fn text(&mut self, text: &str) {
        self.raw(&quoted(text));
    }

    /// A member whose value is JSON already.
    pub(super) fn member(&mut self, name: &str, json: &str) {
        self.key(name);
        self.raw(json);
    }

    /// A member whose value is text.
    pub(super) fn word(&mut self, name: &str, text: &str) {
        self.key(name);
        self.text(text);
    }

    /// A text value made of the insides of others, which [`inside`] gives, and of plain ones.
    pub(super) fn joined<'p>(&mut self, pieces: impl IntoIterator<Item = &'p str>) {
        self.separate();
        self.text.push('"');
        pieces.into_iter().for_each(|piece| self.text.push_str(piece));
        self.text.push('"');
    }

    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    pub(super) fn finish(self) -> String {
        self.text
    }

    /// Nothing but an opening or a name stands before a value without a comma.
    fn separate(&mut self) {
        if !matches!(self.text.as_bytes().last(), None | Some(b'{' | b'[' | b':')) {
            self.text.push(',');
        }
    }
}

/// A text as JSON.
pub(super) fn quoted(text: &str) -> String {
    // A string always serialises.
    serde_json::to_string(text).unwrap_or_default()
}

/// Strings and numbers under string keys always serialise, so there is no error to report.
pub(super) fn written(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// What stands between the quotes of a JSON text, escapes and all; `None` if the value is no text.
pub(super) fn inside(value: &RawValue) -> Option<&str> {
    value.get().strip_prefix('"')?.strip_suffix('"')
}
