//! Forms (`multipart/form-data`), watched as they pass by: where a form's `model` lies, and whether it is one form to
//! every reader.
//!
//! A form may hold a file of many megabytes, so nothing is kept here but the head of one part: [`Scanner`] is given the
//! bytes in whatever pieces they come and remembers where the fields are that we act on. It is strict on purpose. The
//! bytes go to a provider as they came, and a head that two readers understand differently, or a second `model` further
//! down, could ask there for a model that the caller may not use. It neither decodes fields nor writes forms.

use std::ops::Range;

/// Longest boundary (RFC 2046, 5.1.1).
const MOST_BOUNDARY: usize = 70;
/// Largest head of one part.
const MOST_HEAD: usize = 8 * 1024;
/// Most parts of one form.
const MOST_PARTS: usize = 256;
/// Longest name of a model.
const MOST_MODEL: usize = 512;

/// Why a form is refused. Says nothing of its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FormError {
    /// What is wrong and what to send instead.
    pub message: &'static str,
    /// The field it is about.
    pub param: Option<&'static str>,
}

fn malformed<T>(message: &'static str) -> Result<T, FormError> {
    Err(FormError { message, param: None })
}

fn bad_model<T>(message: &'static str) -> Result<T, FormError> {
    Err(FormError { message, param: Some("model") })
}

/// What stands between the parts of a form.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Boundary(String);

impl Boundary {
    /// Reads a `content-type`; `None` if it is no form.
    ///
    /// # Errors
    /// [`FormError`] for a form without exactly one boundary of 1 to 70 permitted characters.
    pub fn of(content_type: &[u8]) -> Option<Result<Self, FormError>> {
        let (essence, parameters) = split_once(content_type, b';').unwrap_or((content_type, b""));
        essence.trim_ascii().eq_ignore_ascii_case(b"multipart/form-data").then(|| Self::among(parameters))
    }

    fn among(parameters: &[u8]) -> Result<Self, FormError> {
        let mut found = None;
        let mut rest = parameters;
        while !rest.trim_ascii().is_empty() {
            let (name, value, after) = parameter(rest).ok_or(FormError { message: BAD_BOUNDARY, param: None })?;
            if name.eq_ignore_ascii_case(b"boundary") && found.replace(value).is_some() {
                return malformed(BAD_BOUNDARY);
            }
            rest = after;
        }
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(byte);
        match found {
            Some(value)
                if (1..=MOST_BOUNDARY).contains(&value.len())
                    && value.iter().all(allowed)
                    && !value.ends_with(b" ") =>
            {
                Ok(Self(String::from_utf8_lossy(value).into_owned()))
            }
            _ => malformed(BAD_BOUNDARY),
        }
    }

    /// The `content-type` of a form with this boundary, in one spelling.
    pub fn content_type(&self) -> String {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"'+_-.".contains(&byte);
        let quote = if self.0.bytes().all(plain) { "" } else { "\"" };
        format!("multipart/form-data; boundary={quote}{}{quote}", self.0)
    }
}

const BAD_BOUNDARY: &str = "the content-type of a form needs one boundary of 1 to 70 characters";

/// Where the values lie that are acted on, counted from the form's first byte.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Fields {
    /// The model's name.
    pub model: Option<Range<usize>>,
    /// Whether events are wanted.
    pub stream: Option<Range<usize>>,
    /// What kind of answer is wanted.
    pub response_format: Option<Range<usize>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Field {
    Model,
    Stream,
    ResponseFormat,
    Other,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Before the first delimiter.
    Start,
    /// Behind a delimiter: a line end, or the two hyphens of the last one.
    Behind(Option<u8>),
    /// In the head of a part.
    Head,
    /// In the content of a part.
    Content(Field),
    /// Behind the last delimiter.
    Over,
}

/// Reads a form in pieces.
#[derive(Debug)]
pub struct Scanner {
    /// A line end, two hyphens, the boundary.
    delimiter: Box<[u8]>,
    state: State,
    /// How much of the delimiter the last bytes were.
    matched: usize,
    /// Bytes read.
    at: usize,
    /// Where the content of this part began.
    from: usize,
    head: Vec<u8>,
    parts: usize,
    saw_model: bool,
    fields: Fields,
}

impl Scanner {
    /// Knows nothing yet.
    pub fn new(boundary: &Boundary) -> Self {
        Self {
            delimiter: [b"\r\n--", boundary.0.as_bytes()].concat().into(),
            state: State::Start,
            // The first delimiter has no line before it whose end could belong to it.
            matched: 2,
            at: 0,
            from: 0,
            head: Vec::new(),
            parts: 0,
            saw_model: false,
            fields: Fields::default(),
        }
    }

    /// What was found so far; a field is there once its content has ended.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Reads the next bytes.
    ///
    /// # Errors
    /// [`FormError`] as soon as the form is none, or not one to every reader.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), FormError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let used = match self.state {
                State::Start | State::Content(_) => self.content(rest)?,
                State::Behind(first) => self.behind(first, rest)?,
                State::Head => self.head(rest)?,
                State::Over if rest.iter().all(|byte| b"\r\n \t".contains(byte)) => rest.len(),
                State::Over => return malformed("there is something behind the end of the form"),
            };
            self.at += used;
            rest = rest.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    /// Ends the form.
    ///
    /// # Errors
    /// [`FormError`] if it ended before its last delimiter.
    pub fn finish(&self) -> Result<(), FormError> {
        if self.state == State::Over { Ok(()) } else { malformed("the form ends before its last boundary") }
    }

    /// Up to the end of the next delimiter, or of `bytes`. The delimiter's first byte occurs in it once, so after a
    /// mismatch nothing of what was matched needs to be looked at again.
    fn content(&mut self, bytes: &[u8]) -> Result<usize, FormError> {
        let mut used = 0;
        while let Some(&byte) = bytes.get(used) {
            if self.delimiter.get(self.matched) == Some(&byte) {
                self.matched += 1;
                used += 1;
                if self.matched == self.delimiter.len() {
                    self.delimited(self.at + used)?;
                    return Ok(used);
                }
            } else if self.state == State::Start && !(self.matched == 2 && byte == b'\r' && self.at + used == 0) {
                return malformed("the form does not begin with its boundary");
            } else if self.matched > 0 {
                self.matched = 0;
            } else {
                let rest = bytes.get(used..).unwrap_or_default();
                used += memchr::memchr(b'\r', rest).unwrap_or(rest.len());
            }
        }
        self.check_length((self.at + used).saturating_sub(self.matched))?;
        Ok(used)
    }

    fn check_length(&self, end: usize) -> Result<(), FormError> {
        if self.state == State::Content(Field::Model) && end.saturating_sub(self.from) > MOST_MODEL {
            return bad_model("the name of the model is too long");
        }
        Ok(())
    }

    fn delimited(&mut self, end: usize) -> Result<(), FormError> {
        let value = self.from..end.saturating_sub(self.delimiter.len());
        self.check_length(value.end)?;
        match self.state {
            State::Content(Field::Model) if value.is_empty() => return bad_model("model must not be empty"),
            State::Content(Field::Model) => self.fields.model = Some(value),
            State::Content(Field::Stream) => self.fields.stream = Some(value),
            State::Content(Field::ResponseFormat) => self.fields.response_format = Some(value),
            _ => {}
        }
        self.matched = 0;
        self.state = State::Behind(None);
        Ok(())
    }

    fn behind(&mut self, first: Option<u8>, bytes: &[u8]) -> Result<usize, FormError> {
        self.state = match (first, bytes.first()) {
            (None, Some(&byte @ (b'-' | b'\r'))) => State::Behind(Some(byte)),
            (Some(b'-'), Some(b'-')) => State::Over,
            (Some(b'\r'), Some(b'\n')) => {
                self.parts += 1;
                if self.parts > MOST_PARTS {
                    return malformed("the form has more than 256 parts");
                }
                self.head.clear();
                State::Head
            }
            _ => return malformed("a boundary of the form is not alone in its line"),
        };
        Ok(1)
    }

    fn head(&mut self, bytes: &[u8]) -> Result<usize, FormError> {
        for (index, byte) in bytes.iter().enumerate() {
            self.head.push(*byte);
            if self.head.ends_with(b"\r\n\r\n") {
                let lines = self.head.get(..self.head.len() - 4).unwrap_or_default();
                let field = field_of(lines)?;
                if field == Field::Model && std::mem::replace(&mut self.saw_model, true) {
                    return bad_model("model occurs twice, send it once");
                }
                self.from = self.at + index + 1;
                self.state = State::Content(field);
                return Ok(index + 1);
            }
            if self.head.len() >= MOST_HEAD || self.head == b"\r\n" {
                return malformed("a part of the form has no head or too large a one");
            }
        }
        Ok(bytes.len())
    }
}

/// The field a part holds, by the lines of its head.
fn field_of(head: &[u8]) -> Result<Field, FormError> {
    const BAD_HEAD: FormError = FormError { message: "a head of the form is malformed", param: None };
    let mut field = None;
    let mut rest = Some(head);
    while let Some(lines) = rest {
        let (line, after) = match memchr::memmem::find(lines, b"\r\n") {
            Some(end) => (lines.get(..end).unwrap_or_default(), lines.get(end + 2..)),
            None => (lines, None),
        };
        rest = after;
        let (name, value) = split_once(line, b':').filter(|(name, _)| is_token(name)).ok_or(BAD_HEAD)?;
        let value = value.trim_ascii();
        if value.iter().any(|byte| *byte < b' ' && *byte != b'\t' || *byte == 0x7f) {
            return Err(BAD_HEAD);
        }
        if name.eq_ignore_ascii_case(b"content-disposition") {
            if field.replace(named(value)?).is_some() {
                return Err(BAD_HEAD);
            }
        } else if name.eq_ignore_ascii_case(b"content-transfer-encoding") {
            let plain = [&b"binary"[..], b"7bit", b"8bit"];
            if !plain.iter().any(|known| value.eq_ignore_ascii_case(known)) {
                return malformed("parts of the form must not be encoded");
            }
        }
    }
    field.ok_or(FormError { message: "a part of the form has no name", param: None })
}

/// The field a `content-disposition` names.
fn named(disposition: &[u8]) -> Result<Field, FormError> {
    const BAD_NAME: FormError = FormError { message: "a name in the form can be read in two ways", param: None };
    let (kind, mut rest) = split_once(disposition, b';').ok_or(BAD_NAME)?;
    if !kind.trim_ascii().eq_ignore_ascii_case(b"form-data") {
        return Err(BAD_NAME);
    }
    let (mut name, mut is_file) = (None, false);
    while !rest.trim_ascii().is_empty() {
        let (key, value, after) = parameter(rest).ok_or(BAD_NAME)?;
        rest = after;
        if key.eq_ignore_ascii_case(b"name") {
            if name.replace(value).is_some() {
                return Err(BAD_NAME);
            }
        } else if key.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"name")) {
            return Err(BAD_NAME);
        } else {
            is_file |= key.get(..8).is_some_and(|start| start.eq_ignore_ascii_case(b"filename"));
        }
    }
    match name.ok_or(BAD_NAME)? {
        b"model" if is_file => bad_model("model must be a field, not a file"),
        b"model" => Ok(Field::Model),
        b"stream" => Ok(Field::Stream),
        b"response_format" => Ok(Field::ResponseFormat),
        _ => Ok(Field::Other),
    }
}

/// The first `name=value` of a list, and what follows its semicolon. A quoted value ends at the next quotation mark: one
/// that is escaped is an end to some readers, so it is refused.
fn parameter(list: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (name, rest) = split_once(list, b'=')?;
    let name = name.trim_ascii_start();
    if !is_token(name) {
        return None;
    }
    let Some(quoted) = rest.strip_prefix(b"\"") else {
        let (value, after) = split_once(rest, b';').unwrap_or((rest, b""));
        let value = value.trim_ascii_end();
        return is_token(value).then_some((name, value, after));
    };
    let (value, after) = split_once(quoted, b'"')?;
    let after = after.trim_ascii_start();
    let after = if after.is_empty() { after } else { after.strip_prefix(b";")? };
    (!value.ends_with(b"\\")).then_some((name, value, after))
}

fn is_token(text: &[u8]) -> bool {
    let in_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(in_token)
}

fn split_once(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let place = memchr::memchr(at, bytes)?;
    Some((bytes.get(..place)?, bytes.get(place + 1..)?))
}

#[cfg(test)]
mod tests;
