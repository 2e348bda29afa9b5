//! Reads Rust sources just well enough to check rules about them.
//!
//! It is a scanner, not a parser: it knows comments, literals, braces and paths. It does not expand macros, so a path
//! that only a macro writes is not seen.

use std::fs;
use std::path::{Path, PathBuf};

/// One source file in the forms the rules need. All forms have the same lines and the same byte positions.
pub struct Source {
    /// Relative to the repository, with `/`.
    pub path: String,
    /// As on disk.
    pub raw: String,
    /// Comments and test modules blanked.
    pub text: String,
    /// Comments, test modules and the contents of literals blanked.
    pub code: String,
}

/// Every `.rs` file below `folder`, in name order.
pub fn sources(folder: &str) -> Vec<Source> {
    let mut paths = Vec::new();
    walk(&root().join(folder), &mut paths);
    paths.sort();
    paths.iter().filter(|path| path.extension().is_some_and(|ext| ext == "rs")).map(|path| read(path)).collect()
}

/// The repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() { walk(&path, found) } else { found.push(path) }
    }
}

fn read(path: &Path) -> Source {
    let raw = fs::read_to_string(path).unwrap();
    let path = path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
    Source::new(path, raw)
}

impl Source {
    /// Prepares the forms of one text.
    pub fn new(path: String, raw: String) -> Self {
        let (mut text, mut code) = blank_comments_and_literals(&raw);
        if is_test(&path) {
            blank(&mut text, 0, raw.len());
            blank(&mut code, 0, raw.len());
        }
        for (start, end) in test_items(&code) {
            blank(&mut text, start, end);
            blank(&mut code, start, end);
        }
        let utf8 = |bytes| String::from_utf8(bytes).unwrap();
        Self { path, raw, text: utf8(text), code: utf8(code) }
    }

    /// `path:line` of a byte position.
    pub fn at(&self, position: usize) -> String {
        format!("{}:{}", self.path, self.raw[..position].matches('\n').count() + 1)
    }

    /// True for the tests of a module that are a file of their own.
    pub fn is_test(&self) -> bool {
        is_test(&self.path)
    }

    /// Lines that are not tests.
    pub fn production_lines(&self) -> usize {
        if self.is_test() {
            return 0;
        }
        let (_, code) = blank_comments_and_literals(&self.raw);
        let tests: usize = test_items(&code).iter().map(|&(from, to)| self.raw[from..to].matches('\n').count()).sum();
        self.raw.lines().count() - tests
    }

    /// The module path below the crate, `["layer", "failover", "policy"]`; empty for `lib.rs` and `main.rs`.
    pub fn module(&self) -> Vec<String> {
        let inner = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        let mut parts: Vec<String> = inner.split('/').map(str::to_owned).collect();
        if parts.last().is_some_and(|last| last == "mod" || last == "lib" || last == "main") {
            parts.pop();
        }
        parts
    }

    /// Every path written from `crate::` or `super::`, made absolute from the crate's root, with its position.
    pub fn crate_paths(&self) -> Vec<(usize, Vec<String>)> {
        let mut found = Vec::new();
        for (position, word) in words(&self.code) {
            let before = self.code[..position].trim_end();
            let continues = before.ends_with("::") || before.ends_with('$');
            if continues || !self.code[position + word.len()..].starts_with("::") {
                continue;
            }
            let mut prefix = match word {
                "crate" => Vec::new(),
                "super" => self.module(),
                _ => continue,
            };
            if word == "super" {
                prefix.pop();
            }
            tree(&self.code, position + word.len() + 2, &prefix, &mut found);
        }
        found
    }

    /// Every function with a body: position of `fn`, its name, and how many lines of code its body has.
    pub fn functions(&self) -> Vec<(usize, &str, usize)> {
        let mut all = words(&self.code).into_iter();
        let mut found = Vec::new();
        while let Some((position, word)) = all.next() {
            if word != "fn" {
                continue;
            }
            let Some((name_at, name)) = all.next() else { break };
            let Some(open) = body_start(&self.code, name_at) else { continue };
            let close = closing(&self.code, open);
            let lines = self.text[open..close].lines().filter(|line| !line.trim().is_empty()).count();
            found.push((position, name, lines));
        }
        found
    }
}

fn is_test(path: &str) -> bool {
    path.starts_with("src/")
        && (path.ends_with("/tests.rs") || path.ends_with("/testing.rs") || path.contains("/tests/"))
}

/// Identifiers and keywords with their positions.
pub fn words(code: &str) -> Vec<(usize, &str)> {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut rest = 0;
    while let Some(start) = code[rest..].find(part).map(|offset| rest + offset) {
        let end = code[start..].find(|c| !part(c)).map_or(code.len(), |offset| start + offset);
        found.push((start, &code[start..end]));
        rest = end;
    }
    found
}

/// Reads `a::b`, `a::{b, c::d}` and `super::a` from `position` on; returns where it stopped.
fn tree(code: &str, position: usize, prefix: &[String], found: &mut Vec<(usize, Vec<String>)>) -> usize {
    let mut path = prefix.to_vec();
    let mut at = position;
    loop {
        at += code[at..].len() - code[at..].trim_start().len();
        if code[at..].starts_with('{') {
            at += 1;
            while at < code.len() && !code[at..].trim_start().starts_with('}') {
                let next = tree(code, at, &path, found).max(at + 1);
                at = code[next..].find([',', '}']).map_or(code.len(), |offset| next + offset);
                at += usize::from(code[at..].starts_with(','));
            }
            return code[at..].find('}').map_or(code.len(), |offset| at + offset + 1);
        }
        let end = code[at..].find(|c: char| !c.is_alphanumeric() && c != '_').map_or(code.len(), |offset| at + offset);
        match &code[at..end] {
            "super" => drop(path.pop()),
            "self" | "" => {}
            word => path.push(word.to_owned()),
        }
        if !code[end..].starts_with("::") {
            found.push((position, path));
            return end;
        }
        at = end + 2;
    }
}

fn blank(bytes: &mut [u8], from: usize, to: usize) {
    bytes[from..to].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
}

/// The spans of items under `#[cfg(test)]`.
fn test_items(code: &[u8]) -> Vec<(usize, usize)> {
    let code = std::str::from_utf8(code).unwrap();
    let mut spans = Vec::new();
    let mut from = 0;
    while let Some(start) = code[from..].find("#[cfg(test)]").map(|offset| from + offset) {
        let end = match code[start..].find(['{', ';']).map(|offset| start + offset) {
            Some(brace) if code[brace..].starts_with('{') => closing(code, brace),
            Some(semicolon) => semicolon + 1,
            None => code.len(),
        };
        spans.push((start, end));
        from = end;
    }
    spans
}

/// Where the block that opens at `open` ends.
fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (offset, byte) in code[open..].bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return open + offset + 1,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// The brace that opens a function's body; `None` for a declaration or a function pointer type.
fn body_start(code: &str, name_at: usize) -> Option<usize> {
    let mut depth = 0_i32;
    for (offset, byte) in code[name_at..].bytes().enumerate() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' | b';' if depth == 0 => return None,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(name_at + offset),
            _ => {}
        }
    }
    None
}

/// (comments blanked, comments and literals blanked)
fn blank_comments_and_literals(raw: &str) -> (Vec<u8>, Vec<u8>) {
    let bytes = raw.as_bytes();
    let (mut text, mut code) = (bytes.to_vec(), bytes.to_vec());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let end = at + token(rest, at.checked_sub(1).map(|before| bytes[before]));
        if rest.starts_with(b"//") || rest.starts_with(b"/*") {
            blank(&mut text, at, end);
            blank(&mut code, at, end);
        } else if end > at + 1 {
            blank(&mut code, at, end);
        }
        at = end;
    }
    (text, code)
}

/// The length of the comment or literal that starts here; 1 for anything else.
fn token(rest: &[u8], before: Option<u8>) -> usize {
    let until = |needle: &[u8], from: usize| {
        rest.get(from..)
            .and_then(|tail| tail.windows(needle.len()).position(|window| window == needle))
            .map_or(rest.len(), |offset| from + offset)
    };
    let in_word = before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match rest {
        [b'/', b'/', ..] => until(b"\n", 0),
        [b'/', b'*', ..] => block_comment(rest),
        [b'r', ..] if !in_word && raw_hashes(&rest[1..]).is_some() => raw_string(rest, 1),
        [b'b', b'r', ..] if !in_word && raw_hashes(&rest[2..]).is_some() => raw_string(rest, 2),
        [b'"', ..] => quoted(rest, b'"'),
        [b'\'', b'\\', ..] => quoted(rest, b'\''),
        // A character, unlike a lifetime, is closed within a few bytes.
        [b'\'', ..] => Some(until(b"'", 1)).filter(|&end| is_char(&rest[1..end])).map_or(1, |end| end + 1),
        _ => 1,
    }
}

fn is_char(inner: &[u8]) -> bool {
    inner.len() <= 4 && std::str::from_utf8(inner).is_ok_and(|inner| inner.chars().count() == 1)
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] if depth == 1 => return at + 2,
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    rest.len()
}

fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// How many `#` a raw string has, if this is one.
fn raw_hashes(rest: &[u8]) -> Option<usize> {
    let hashes = rest.iter().take_while(|&&byte| byte == b'#').count();
    (rest.get(hashes) == Some(&b'"')).then_some(hashes)
}

fn raw_string(rest: &[u8], prefix: usize) -> usize {
    let hashes = raw_hashes(&rest[prefix..]).unwrap_or(0);
    let mut close = vec![b'"'];
    close.resize(1 + hashes, b'#');
    let body = prefix + hashes + 1;
    rest.get(body..)
        .and_then(|tail| tail.windows(close.len()).position(|window| window == close))
        .map_or(rest.len(), |offset| body + offset + close.len())
}
