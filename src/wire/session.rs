//! Which conversation a request belongs to, as far as its body says: a number to lead the turns of one to one provider.
//!
//! The first of these that is there counts: `prompt_cache_key`, `conversation` (its id), `user`, `metadata.user_id`, and
//! else how the conversation begins: its instructions and everything up to its first user message, which every later turn
//! repeats. `previous_response_id` is not among them, since it is another one at each turn. Any of the request forms may
//! be given; what cannot be read says nothing. The number is for choosing, not for telling anybody: it keeps no text.

use std::borrow::Cow;

use serde::de::{IgnoredAny, MapAccess, SeqAccess};

use crate::wire::json_read;
use crate::wire::openai::lenient::{Lenient, Loose, Shape};

/// The conversation's number, the same at every turn; `None` if the body says nothing of it.
pub fn conversation_of(body: &[u8]) -> Option<u64> {
    let Lenient::Map(said) = json_read::from_slice::<Lenient<'_, Said<'_>>>(body).ok()? else { return None };
    let id = match said.conversation {
        Lenient::Text(id) => Some(id),
        Lenient::Map(object) => object.id.text(),
        _ => None,
    };
    let user_id = match said.metadata {
        Lenient::Map(metadata) => metadata.user_id.text(),
        _ => None,
    };
    let named = [said.prompt_cache_key.text(), id, said.user.text(), user_id];
    let named = named.into_iter().enumerate().find_map(|(kind, name)| {
        let name = name.filter(|name| !name.is_empty())?;
        let mut hash = Hash::default();
        hash.add(&[u8::try_from(kind).unwrap_or_default()]);
        hash.add(name.as_bytes());
        Some(hash.0)
    });
    named.or_else(|| said.opening.told.then_some(said.opening.hash.0))
}

/// FNV-1a: spread matters here, not secrecy.
#[derive(Clone, Copy)]
struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    fn add(&mut self, bytes: &[u8]) {
        // A byte that UTF-8 has not ends each part, so that no two lists of parts run together.
        for byte in bytes.iter().chain(&[0xff]) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[derive(Default)]
struct Said<'de> {
    prompt_cache_key: Loose<'de>,
    conversation: Lenient<'de, Named<'de>>,
    user: Loose<'de>,
    metadata: Lenient<'de, Named<'de>>,
    opening: Opening,
}

impl<'de> Shape<'de> for Said<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "prompt_cache_key" => self.prompt_cache_key = map.next_value()?,
            "conversation" => self.conversation = map.next_value()?,
            "user" => self.user = map.next_value()?,
            "metadata" => self.metadata = map.next_value()?,
            "instructions" | "system" | "prompt" => self.opening.text(&map.next_value()?),
            "messages" | "input" => match map.next_value::<Lenient<'de, Opening>>()? {
                Lenient::List(turns) => self.opening.join(&turns),
                Lenient::Text(text) => self.opening.add(&text),
                _ => {}
            },
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

/// An object of which a name is read.
#[derive(Default)]
struct Named<'de> {
    id: Loose<'de>,
    user_id: Loose<'de>,
}

impl<'de> Shape<'de> for Named<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "id" => self.id = map.next_value()?,
            "user_id" => self.user_id = map.next_value()?,
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

/// How a conversation begins, up to its first user message.
#[derive(Default)]
struct Opening {
    hash: Hash,
    told: bool,
    over: bool,
}

impl Opening {
    fn add(&mut self, text: &str) {
        self.hash.add(text.as_bytes());
        self.told = true;
    }

    fn text(&mut self, content: &Lenient<'_, Texts>) {
        match content {
            Lenient::Text(text) => self.add(text),
            Lenient::List(texts) | Lenient::Map(texts) if texts.told => self.join(&texts.as_opening()),
            _ => {}
        }
    }

    fn join(&mut self, other: &Self) {
        if other.told {
            self.hash.add(&other.hash.0.to_be_bytes());
            self.told = true;
        }
    }
}

impl<'de> Shape<'de> for Opening {
    fn element<A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        if self.over {
            return Ok(list.next_element::<IgnoredAny>()?.is_some());
        }
        let Some(turn) = list.next_element::<Lenient<'de, Turn<'de>>>()? else { return Ok(false) };
        if let Lenient::Map(turn) = turn {
            self.text(&turn.content);
            self.over = matches!(&turn.role, Lenient::Text(role) if role == "user");
        }
        Ok(true)
    }
}

#[derive(Default)]
struct Turn<'de> {
    role: Loose<'de>,
    content: Lenient<'de, Texts>,
}

impl<'de> Shape<'de> for Turn<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "role" => self.role = map.next_value()?,
            "content" => self.content = map.next_value()?,
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

/// The texts of a list of parts, or of one part.
#[derive(Default)]
struct Texts {
    hash: Hash,
    told: bool,
}

impl Texts {
    fn as_opening(&self) -> Opening {
        Opening { hash: self.hash, told: self.told, over: false }
    }
}

impl<'de> Shape<'de> for Texts {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        if key != "text" {
            return map.next_value::<IgnoredAny>().map(drop);
        }
        if let Some(text) = map.next_value::<Loose<'_>>()?.text() {
            self.hash.add(text.as_bytes());
            self.told = true;
        }
        Ok(())
    }

    fn element<A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let Some(part) = list.next_element::<Lenient<'de, Self>>()? else { return Ok(false) };
        if let Lenient::Map(part) = part
            && part.told
        {
            self.hash.add(&part.hash.0.to_be_bytes());
            self.told = true;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn of(body: &serde_json::Value) -> Option<u64> {
        conversation_of(body.to_string().as_bytes())
    }

    #[test]
    fn every_turn_of_a_conversation_has_the_same_number_and_another_one_has_not() {
        let first = json!({"model": "m", "messages": [
            {"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]});
        let second = json!({"messages": [
            {"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "hi"}, {"role": "user", "content": "and now?"}], "model": "m"});
        let other = json!({"messages": [
            {"role": "system", "content": "be brief"}, {"role": "user", "content": "goodbye"}]});
        assert!(of(&first).is_some());
        assert_eq!(of(&first), of(&second));
        assert_ne!(of(&first), of(&other));
        let parts = |text: &str| {
            json!({"system": "be kind", "messages": [{"role": "user", "content": [
                {"type": "text", "text": text}, {"type": "image", "source": {}}]}]})
        };
        assert_ne!(of(&parts("hello")), of(&parts("hello you")));
        assert!(of(&json!({"input": "hello"})).is_some() && of(&json!({"prompt": "hello"})).is_some());
    }

    #[test]
    fn a_name_counts_before_how_it_begins() {
        let named = |field: &str, value: serde_json::Value| json!({field: value, "messages": [{"role": "user", "content": "hello"}]});
        let plain = of(&json!({"messages": [{"role": "user", "content": "hello"}]}));
        let fields = [
            ("prompt_cache_key", json!("k")),
            ("conversation", json!("k")),
            ("user", json!("k")),
            ("metadata", json!({"user_id": "k"})),
        ];
        for (field, value) in fields {
            let number = of(&named(field, value.clone()));
            assert!(number.is_some() && number != plain, "{field}");
            let elsewhere = json!({field: value, "messages": [{"role": "user", "content": "something else"}]});
            assert_eq!(number, of(&elsewhere), "{field}");
        }
        assert_eq!(of(&named("conversation", json!({"id": "k"}))), of(&named("conversation", json!("k"))));
        assert_eq!(of(&named("previous_response_id", json!("resp_1"))), plain);
        assert_eq!(of(&named("user", json!(""))), plain);
    }

    #[test]
    fn what_says_nothing_has_none() {
        for body in [json!({}), json!({"messages": []}), json!([]), json!({"input": 7}), json!({"messages": [1, null]})]
        {
            assert_eq!(of(&body), None, "{body}");
        }
        assert_eq!(conversation_of(b"{"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = conversation_of(&bytes);
        }
    }
}
