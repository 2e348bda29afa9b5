//! Pieces of TOML text.

/// A TOML string.
pub(super) fn quoted(text: &str) -> String {
    let escaped = text.chars().fold(String::with_capacity(text.len()), |mut escaped, c| {
        match c {
            '"' | '\\' => escaped.extend(['\\', c]),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
        escaped
    });
    format!("\"{escaped}\"")
}

/// A text that can stand in a comment.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

/// What did not come along, by line of the imported file.
#[derive(Default)]
pub(super) struct Notes(Vec<(usize, String)>);

impl Notes {
    /// Adds a sentence; never with a value of the file that could be a secret.
    pub(super) fn add(&mut self, line: usize, what: &str) {
        self.0.push((line, one_line(what)));
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// As comments, in the order of the file.
    pub(super) fn comments(&mut self, name: &str) -> String {
        self.0.sort();
        let name = one_line(name);
        let lines: Vec<String> = self.0.iter().map(|(line, what)| format!("#   {name}:{line}: {what}\n")).collect();
        lines.concat()
    }
}
