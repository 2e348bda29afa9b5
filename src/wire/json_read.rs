//! A strict JSON reader for serde that is fast at what a proxy does most: passing over values.
//!
//! Of a body we read a few members and let everything else through, so most of the work is to find where a value ends.
//! serde's own reader does that byte by byte and copies less well than it skips; this one takes strings in whole blocks
//! and keeps no heap. Whatever is rare (escapes, numbers that are no plain count) it hands to `serde_json`, and a
//! property test holds it to accept exactly what `serde_json` accepts. It nests at most [`DEEPEST`] levels.
//!
//! It reads text and visits values; it does not build trees and does not say where a mistake is.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Most levels of objects and lists, so that hostile nesting costs neither stack nor heap.
pub const DEEPEST: usize = 512;

/// Not JSON, nested too deeply, or refused by the type that was to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the text is not the JSON that was expected")
    }
}

impl std::error::Error for Malformed {}

impl Error for Malformed {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

/// Reads the whole of `text`, nested at most `deepest` levels (and never more than [`DEEPEST`]).
///
/// # Errors
/// [`Malformed`].
pub fn from_str<'de, T: Deserialize<'de>>(text: &'de str, deepest: usize) -> Result<T, Malformed> {
    fill_from_str(text, deepest, PhantomData::<T>)
}

/// As [`from_str`], from bytes. Text that is not UTF-8 in a place nobody reads is let through, as `serde_json` does.
///
/// # Errors
/// [`Malformed`].
pub fn from_slice<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, Malformed> {
    fill_from_slice(bytes, PhantomData::<T>)
}

/// True if `bytes` are one JSON value, of any kind.
pub fn is_json(bytes: &[u8]) -> bool {
    from_slice::<IgnoredAny>(bytes).is_ok()
}

/// As [`from_str`], into a place that `seed` knows.
///
/// # Errors
/// [`Malformed`].
pub fn fill_from_str<'de, S: DeserializeSeed<'de>>(
    text: &'de str,
    deepest: usize,
    seed: S,
) -> Result<S::Value, Malformed> {
    let mut reader = Reader { text, at: 0, room: deepest.min(DEEPEST) };
    let value = seed.deserialize(&mut reader)?;
    reader.pass_space();
    if reader.at == text.len() { Ok(value) } else { Err(Malformed) }
}

/// As [`from_slice`], into a place that `seed` knows.
///
/// # Errors
/// [`Malformed`].
pub fn fill_from_slice<'de, S: DeserializeSeed<'de>>(bytes: &'de [u8], seed: S) -> Result<S::Value, Malformed> {
    if let Ok(text) = simdutf8::basic::from_utf8(bytes) {
        return fill_from_str(text, DEEPEST, seed);
    }
    let mut slow = serde_json::Deserializer::from_slice(bytes);
    let value = seed.deserialize(&mut slow).map_err(|_| Malformed)?;
    slow.end().map(|()| value).map_err(|_| Malformed)
}

struct Reader<'de> {
    text: &'de str,
    at: usize,
    /// Levels that may still be opened.
    room: usize,
}

impl<'de> Reader<'de> {
    #[inline]
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn pass_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    /// The next byte that is no white space; it stays.
    #[inline]
    fn next_byte(&mut self) -> Result<u8, Malformed> {
        match self.peek() {
            Some(byte) if byte > b' ' => Ok(byte),
            _ => self.next_after_space(),
        }
    }

    /// Machines write JSON with little white space, so this one stays out of the way.
    #[inline(never)]
    fn next_after_space(&mut self) -> Result<u8, Malformed> {
        self.pass_space();
        self.peek().ok_or(Malformed)
    }

    #[inline]
    fn take(&mut self, byte: u8) -> Result<(), Malformed> {
        if self.next_byte()? != byte {
            return Err(Malformed);
        }
        self.at += 1;
        Ok(())
    }

    fn word(&mut self, word: &str) -> Result<(), Malformed> {
        if !self.rest().starts_with(word.as_bytes()) {
            return Err(Malformed);
        }
        self.at += word.len();
        Ok(())
    }

    fn rest(&self) -> &'de [u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    fn since(&self, start: usize) -> Result<&'de str, Malformed> {
        self.text.get(start..self.at).ok_or(Malformed)
    }

    /// Passes over a string whose opening quote is next. True if it has no escapes.
    fn pass_string(&mut self) -> Result<bool, Malformed> {
        self.at += 1;
        // Keys and most values end within two words, and nearly all of those with the quote.
        let (words, _) = self.rest().as_chunks::<8>();
        for (at, word) in words.iter().take(2).enumerate() {
            let found = special_in(u64::from_le_bytes(*word)).trailing_zeros() / 8;
            match word.get(found as usize) {
                Some(b'"') => {
                    self.at += 8 * at + found as usize + 1;
                    return Ok(true);
                }
                Some(_) => break,
                None => {}
            }
        }
        self.pass_long_string()
    }

    /// As [`Self::pass_string`], from behind the opening quote.
    #[inline(never)]
    fn pass_long_string(&mut self) -> Result<bool, Malformed> {
        let mut plain = true;
        loop {
            self.at += until_special(self.rest());
            match self.peek().ok_or(Malformed)? {
                b'"' => {
                    self.at += 1;
                    return Ok(plain);
                }
                b'\\' => {
                    plain = false;
                    self.pass_escape()?;
                }
                _ => return Err(Malformed),
            }
        }
    }

    fn pass_escape(&mut self) -> Result<(), Malformed> {
        let escape = self.text.as_bytes().get(self.at + 1).ok_or(Malformed)?;
        self.at += 2;
        match escape {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Ok(()),
            b'u' => {
                let hex = self.rest().get(..4).ok_or(Malformed)?;
                self.at += 4;
                if hex.iter().all(u8::is_ascii_hexdigit) { Ok(()) } else { Err(Malformed) }
            }
            _ => Err(Malformed),
        }
    }

    fn pass_digits(&mut self) -> Result<(), Malformed> {
        let digits = self.rest().iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += digits;
        if digits > 0 { Ok(()) } else { Err(Malformed) }
    }

    fn pass_number(&mut self) -> Result<(), Malformed> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.pass_digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.pass_digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.pass_digits()?;
        }
        Ok(())
    }

    fn pass_key(&mut self) -> Result<(), Malformed> {
        if self.next_byte()? != b'"' {
            return Err(Malformed);
        }
        self.pass_string()?;
        self.take(b':')
    }

    /// Passes over one value of any kind.
    fn pass_value(&mut self) -> Result<(), Malformed> {
        match self.next_byte()? {
            b'{' | b'[' => self.pass_container(),
            _ => self.pass_scalar(),
        }
    }

    fn pass_scalar(&mut self) -> Result<(), Malformed> {
        match self.next_byte()? {
            b'"' => self.pass_string().map(drop),
            b't' => self.word("true"),
            b'f' => self.word("false"),
            b'n' => self.word("null"),
            _ => self.pass_number(),
        }
    }

    /// Passes over an object or a list, without recursion.
    fn pass_container(&mut self) -> Result<(), Malformed> {
        let mut open = Open::default();
        loop {
            match self.next_byte()? {
                b'{' => {
                    self.at += 1;
                    if self.next_byte()? != b'}' {
                        open.push(true, self.room)?;
                        self.pass_key()?;
                        continue;
                    }
                    open.fits(self.room)?;
                    self.at += 1;
                }
                b'[' => {
                    self.at += 1;
                    if self.next_byte()? != b']' {
                        open.push(false, self.room)?;
                        continue;
                    }
                    open.fits(self.room)?;
                    self.at += 1;
                }
                _ => self.pass_scalar()?,
            }
            if self.close(&mut open)? {
                return Ok(());
            }
        }
    }

    /// After a value: closes what ends here. False if another value follows, true if nothing is open any more.
    fn close(&mut self, open: &mut Open) -> Result<bool, Malformed> {
        while let Some(object) = open.top() {
            let byte = self.next_byte()?;
            self.at += 1;
            match (byte, object) {
                (b',', true) => return self.pass_key().map(|()| false),
                (b',', false) => return Ok(false),
                (b'}', true) | (b']', false) => open.pop(),
                _ => return Err(Malformed),
            }
        }
        Ok(true)
    }

    /// Reads a string whose opening quote is next.
    fn visit_string<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Malformed> {
        let start = self.at;
        let plain = self.pass_string()?;
        if plain {
            return visitor.visit_borrowed_str(self.text.get(start + 1..self.at - 1).ok_or(Malformed)?);
        }
        let decoded: String = serde_json::from_str(self.since(start)?).map_err(|_| Malformed)?;
        visitor.visit_string(decoded)
    }

    fn visit_number<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Malformed> {
        let start = self.at;
        self.pass_number()?;
        let number = self.since(start)?;
        match plain_count(number) {
            Some(count) => visitor.visit_u64(count),
            None => serde_json::Deserializer::from_str(number).deserialize_any(visitor).map_err(|_| Malformed),
        }
    }
}

/// A number of digits only that fits; anything else is for a reader that knows numbers.
fn plain_count(number: &str) -> Option<u64> {
    const SAFE_DIGITS: usize = 19;
    if number.len() > SAFE_DIGITS {
        return None;
    }
    number.bytes().try_fold(0u64, |sum, byte| {
        let digit = byte.wrapping_sub(b'0');
        (digit < 10).then(|| sum.wrapping_mul(10).wrapping_add(u64::from(digit)))
    })
}

/// How many bytes at the start of a string's rest mean themselves.
fn until_special(rest: &[u8]) -> usize {
    let (blocks, _) = rest.as_chunks::<64>();
    let mut at = 64 * blocks.iter().take_while(|block| block.iter().copied().fold(0, dirty) == 0).count();
    let (words, _) = rest.get(at..).unwrap_or_default().as_chunks::<8>();
    for word in words {
        match special_in(u64::from_le_bytes(*word)) {
            0 => at += 8,
            found => return at + (found.trailing_zeros() / 8) as usize,
        }
    }
    let last = rest.get(at..).unwrap_or_default();
    at + last.iter().position(|byte| dirty(0, *byte) != 0).unwrap_or(last.len())
}

/// Arithmetic instead of conditions, and no early exit: that is what becomes vector instructions.
fn dirty(hit: u8, byte: u8) -> u8 {
    hit | u8::from(byte == b'"') | u8::from(byte == b'\\') | u8::from(byte < b' ')
}

/// The high bit of every byte that is a quote, a backslash or a control character; above the first one it may be wrong.
fn special_in(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    let zero_bytes = |word: u64| word.wrapping_sub(ONES) & !word;
    let quote = zero_bytes(word ^ (ONES * u64::from(b'"')));
    let backslash = zero_bytes(word ^ (ONES * u64::from(b'\\')));
    let control = word.wrapping_sub(ONES * u64::from(b' ')) & !word;
    (quote | backslash | control) & (ONES << 7)
}

/// Which containers are open: one bit each, set for an object.
#[derive(Default)]
struct Open {
    objects: [u64; DEEPEST / 64],
    depth: usize,
}

impl Open {
    fn fits(&self, room: usize) -> Result<(), Malformed> {
        if self.depth < room { Ok(()) } else { Err(Malformed) }
    }

    fn push(&mut self, object: bool, room: usize) -> Result<(), Malformed> {
        self.fits(room)?;
        let word = self.objects.get_mut(self.depth / 64).ok_or(Malformed)?;
        let bit = 1 << (self.depth % 64);
        *word = if object { *word | bit } else { *word & !bit };
        self.depth += 1;
        Ok(())
    }

    fn top(&self) -> Option<bool> {
        let last = self.depth.checked_sub(1)?;
        Some(self.objects.get(last / 64)? & (1 << (last % 64)) != 0)
    }

    fn pop(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = Malformed;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        match self.next_byte()? {
            b'"' => self.visit_string(visitor),
            b'{' => self.enter(b'}', |members| visitor.visit_map(members)),
            b'[' => self.enter(b']', |elements| visitor.visit_seq(elements)),
            b't' => self.word("true").and_then(|()| visitor.visit_bool(true)),
            b'f' => self.word("false").and_then(|()| visitor.visit_bool(false)),
            b'n' => self.word("null").and_then(|()| visitor.visit_unit()),
            _ => self.visit_number(visitor),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        self.pass_value()?;
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        if self.next_byte()? == b'n' {
            return self.word("null").and_then(|()| visitor.visit_none());
        }
        visitor.visit_some(self)
    }

    /// Also asked for keys, whose quote is the next byte: one step instead of a choice.
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        if self.peek() == Some(b'"') { self.visit_string(visitor) } else { self.deserialize_any(visitor) }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier
    }
}

impl<'de> Reader<'de> {
    /// Reads what stands between the brackets. What the visitor leaves is passed over.
    fn enter<T>(
        &mut self,
        end: u8,
        visit: impl FnOnce(&mut Members<'_, 'de>) -> Result<T, Malformed>,
    ) -> Result<T, Malformed> {
        self.at += 1;
        self.room = self.room.checked_sub(1).ok_or(Malformed)?;
        let mut members = Members { reader: self, end, first: true, over: false };
        let value = visit(&mut members)?;
        while !members.over {
            if end == b'}' && members.next_key::<IgnoredAny>()?.is_some() {
                members.next_value::<IgnoredAny>()?;
            } else if end == b']' {
                members.next_element::<IgnoredAny>()?;
            }
        }
        self.room += 1;
        Ok(value)
    }
}

/// The members of an object or the elements of a list, in order.
struct Members<'r, 'de> {
    reader: &'r mut Reader<'de>,
    end: u8,
    first: bool,
    over: bool,
}

impl Members<'_, '_> {
    /// True if there is one more.
    fn advance(&mut self) -> Result<bool, Malformed> {
        if self.over {
            return Ok(false);
        }
        let mut byte = self.reader.next_byte()?;
        if byte == self.end {
            self.reader.at += 1;
            self.over = true;
            return Ok(false);
        }
        if !std::mem::take(&mut self.first) {
            if byte != b',' {
                return Err(Malformed);
            }
            self.reader.at += 1;
            byte = self.reader.next_byte()?;
        }
        // A key is a string, and after a comma there is no end.
        if self.end == b'}' && byte != b'"' { Err(Malformed) } else { Ok(true) }
    }
}

impl<'de> MapAccess<'de> for Members<'_, 'de> {
    type Error = Malformed;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Malformed> {
        if !self.advance()? {
            return Ok(None);
        }
        seed.deserialize(&mut *self.reader).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Malformed> {
        self.reader.take(b':')?;
        seed.deserialize(&mut *self.reader)
    }
}

impl<'de> SeqAccess<'de> for Members<'_, 'de> {
    type Error = Malformed;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Malformed> {
        if !self.advance()? {
            return Ok(None);
        }
        seed.deserialize(&mut *self.reader).map(Some)
    }
}

#[cfg(test)]
mod tests;
