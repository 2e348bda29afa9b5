//! JSON values taken as they come.
//!
//! A derived struct fails as a whole when one field has an odd type. Here every value has a place, whatever its type,
//! and objects and lists hand their members to a [`Shape`] one by one, so that nothing we do not read is kept.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Up to here every whole number is one of its own in binary form.
const LARGEST_EXACT: f64 = 9_007_199_254_740_992.0;

/// What to keep of an object's members or of a list's elements.
pub(in crate::wire) trait Shape<'de>: Default {
    /// Reads the value of one member, which must be taken from `map`.
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        let _ = key;
        map.next_value::<IgnoredAny>().map(drop)
    }

    /// Reads one element, if there is one more.
    fn element<A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        Ok(list.next_element::<IgnoredAny>()?.is_some())
    }
}

/// Any JSON value.
#[derive(Default)]
pub(in crate::wire) enum Lenient<'de, T> {
    #[default]
    Null,
    Bool(bool),
    /// A number that is a whole one and not negative.
    Unsigned(u64),
    /// Any other number.
    Number,
    Text(Cow<'de, str>),
    List(T),
    Map(T),
}

/// A value of which only text, number or emptiness matters.
pub(in crate::wire) type Loose<'de> = Lenient<'de, Count>;

/// How many members or elements there are.
#[derive(Default)]
pub(in crate::wire) struct Count(usize);

impl<'de> Shape<'de> for Count {
    fn field<A: MapAccess<'de>>(&mut self, _: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        self.0 += 1;
        map.next_value::<IgnoredAny>().map(drop)
    }

    fn element<A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let more = list.next_element::<IgnoredAny>()?.is_some();
        self.0 += usize::from(more);
        Ok(more)
    }
}

impl Loose<'_> {
    /// False for null, `false`, zero and whatever is empty.
    pub(in crate::wire) fn is_filled(&self) -> bool {
        match self {
            Self::Null => false,
            Self::Bool(value) => *value,
            Self::Unsigned(value) => *value != 0,
            Self::Number => true,
            Self::Text(text) => !text.is_empty(),
            Self::List(count) | Self::Map(count) => count.0 > 0,
        }
    }
}

impl<'de, T> Lenient<'de, T> {
    /// The text, if it is one.
    pub(in crate::wire) fn text(self) -> Option<Cow<'de, str>> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number, if it is a whole one and not negative.
    pub(in crate::wire) fn unsigned(&self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(*value),
            _ => None,
        }
    }
}

impl<'de, T: Shape<'de>> Deserialize<'de> for Lenient<'de, T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(AnyValue(PhantomData))
    }
}

struct AnyValue<T>(PhantomData<T>);

impl<'de, T: Shape<'de>> Visitor<'de> for AnyValue<T> {
    type Value = Lenient<'de, T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Lenient::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Lenient::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Lenient::Unsigned(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        Ok(u64::try_from(value).map_or(Lenient::Number, Lenient::Unsigned))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        // Servers without whole numbers write `2.0`.
        Ok(if value.fract() == 0.0 && (0.0..=LARGEST_EXACT).contains(&value) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "whole, and within both bounds"
            )]
            Lenient::Unsigned(value as u64)
        } else {
            Lenient::Number
        })
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Lenient::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Lenient::Text(Cow::Borrowed(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut shape = T::default();
        while shape.element(&mut list)? {}
        Ok(Lenient::List(shape))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut shape = T::default();
        while let Some(Key(key)) = map.next_key()? {
            shape.field(key, &mut map)?;
        }
        Ok(Lenient::Map(shape))
    }
}

/// Reads an object's members into a shape that lies still, because a large one is not free to move. False, and the shape
/// left as it was, for any other value.
pub(super) struct Members<'s, T>(pub(super) &'s mut T);

/// As [`Members`], a list's elements.
pub(super) struct Elements<'s, T>(pub(super) &'s mut T);

/// The visits that [`Members`] and [`Elements`] have in common: values that are neither.
macro_rules! nothing_else_fits {
    () => {
        type Value = bool;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("any value")
        }

        fn visit_unit<E: Error>(self) -> Result<bool, E> {
            Ok(false)
        }

        fn visit_bool<E: Error>(self, _: bool) -> Result<bool, E> {
            Ok(false)
        }

        fn visit_u64<E: Error>(self, _: u64) -> Result<bool, E> {
            Ok(false)
        }

        fn visit_i64<E: Error>(self, _: i64) -> Result<bool, E> {
            Ok(false)
        }

        fn visit_f64<E: Error>(self, _: f64) -> Result<bool, E> {
            Ok(false)
        }

        fn visit_str<E: Error>(self, _: &str) -> Result<bool, E> {
            Ok(false)
        }
    };
}

impl<'de, T: Shape<'de>> DeserializeSeed<'de> for Members<'_, T> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de, T: Shape<'de>> Visitor<'de> for Members<'_, T> {
    nothing_else_fits!();

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<bool, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(false)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        *self.0 = T::default();
        while let Some(Key(key)) = map.next_key()? {
            self.0.field(key, &mut map)?;
        }
        Ok(true)
    }
}

impl<'de, T: Shape<'de>> DeserializeSeed<'de> for Elements<'_, T> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de, T: Shape<'de>> Visitor<'de> for Elements<'_, T> {
    nothing_else_fits!();

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<bool, A::Error> {
        *self.0 = T::default();
        while self.0.element(&mut list)? {}
        Ok(true)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(false)
    }
}

/// A decoded key, borrowed unless it is written with escapes. Serde's own `Cow` always copies.
struct Key<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(AnyKey)
    }
}

struct AnyKey;

impl<'de> Visitor<'de> for AnyKey {
    type Value = Key<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Key(Cow::Owned(text.to_owned())))
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Key(Cow::Borrowed(text)))
    }
}
