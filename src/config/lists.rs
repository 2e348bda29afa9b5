//! Allow, block and review lists: what they hold, and how somebody is looked up.
//!
//! A list is about people and their cards. Its values leave it in no way: not by `Debug`, not in a mistake, not in a
//! diff. What is shown is its name and how long it is.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::domain::policy::ListKind;

/// Most lists of a configuration.
pub(super) const MOST_LISTS: usize = 32;
/// Bits of an IPv6 address.
const WIDTH: u8 = 128;
/// Bits before the IPv4 address in its IPv6 form.
const V4_OFFSET: u8 = 96;

/// One list, ready to be asked.
#[derive(Clone, PartialEq, Eq)]
pub struct List {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// What it does to whoever is on it.
    pub kind: ListKind,
    /// What its values are.
    pub by: ListBy,
    pub(super) values: Values,
}

/// What the values of a list are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListBy {
    /// `user.id`
    User,
    /// `device.id`
    Device,
    /// `device.ip`: addresses and networks.
    Ip,
    /// `instrument.bin`: the first 6 to 8 digits; a shorter value covers all that begin with it.
    Bin,
    /// `instrument.fingerprint`
    Instrument,
    /// `merchant.id`
    Merchant,
    /// `user.email`, in any case; `@example.org` covers the whole domain.
    Email,
    /// The country of the user or the merchant.
    Country,
}

impl ListBy {
    /// All of them with their words.
    pub(super) const WORDS: [(&'static str, Self); 8] = [
        ("user", Self::User),
        ("device", Self::Device),
        ("ip", Self::Ip),
        ("bin", Self::Bin),
        ("instrument", Self::Instrument),
        ("merchant", Self::Merchant),
        ("email", Self::Email),
        ("country", Self::Country),
    ];

    /// The word in a configuration.
    pub fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(_, by)| *by == self).map_or("", |(word, _)| word)
    }
}

#[derive(Clone, PartialEq, Eq)]
pub(super) enum Values {
    Texts(HashSet<Box<str>>),
    Networks(Networks),
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "list {} ({})", self.name, self.len())
    }
}

impl List {
    /// How many values it has.
    pub fn len(&self) -> usize {
        match &self.values {
            Values::Texts(texts) => texts.len(),
            Values::Networks(networks) => networks.blocks.len(),
        }
    }

    /// True if the same are on both.
    pub(super) fn same_values(&self, other: &Self) -> bool {
        self.values == other.values
    }

    /// True if nobody is on it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True if this is on the list. Bounded by the text's length, not by the list's.
    pub fn has(&self, text: &str) -> bool {
        match (&self.values, self.by) {
            (Values::Networks(networks), _) => text.parse().is_ok_and(|address| networks.have(address)),
            (Values::Texts(bins), ListBy::Bin) => {
                (6..=8).any(|length| text.get(..length).is_some_and(|begin| bins.contains(begin)))
            }
            (Values::Texts(addresses), ListBy::Email) => {
                let address = text.to_lowercase();
                let domain = address.rfind('@').and_then(|at| address.get(at..));
                addresses.contains(&*address) || domain.is_some_and(|domain| addresses.contains(domain))
            }
            (Values::Texts(texts), _) => texts.contains(text),
        }
    }
}

/// A block of IP addresses. IPv4 is kept in its IPv6 form, so that both spellings of one address are one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    bits: u8,
    base: u128,
}

impl Network {
    /// The block that is one address.
    pub fn of_address(address: IpAddr) -> Self {
        Self { bits: WIDTH, base: number(address) }
    }

    /// Reads `203.0.113.7`, `203.0.113.0/24` or the like for IPv6. No bit behind the length may be set.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let Some((address, length)) = text.split_once('/') else {
            return text.parse().ok().map(Self::of_address);
        };
        let address: IpAddr = address.parse().ok()?;
        let plain = length.len() <= 3 && length.bytes().all(|b| b.is_ascii_digit());
        let length: u8 = length.parse().ok().filter(|_| plain)?;
        let (offset, most) = if address.is_ipv4() { (V4_OFFSET, 32) } else { (0, WIDTH) };
        let bits = (length <= most).then_some(length + offset)?;
        let base = number(address);
        (base == masked(base, bits)).then_some(Self { bits, base })
    }

    /// True if the address is in the block.
    pub fn has(self, address: IpAddr) -> bool {
        masked(number(address), self.bits) == self.base
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn masked(number: u128, bits: u8) -> u128 {
    number & u128::MAX.checked_shl(u32::from(WIDTH - bits)).unwrap_or(0)
}

/// Blocks of addresses: one look-up for each length that occurs.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Networks {
    lengths: Vec<u8>,
    blocks: HashSet<Network>,
}

impl Networks {
    pub(super) fn new(blocks: HashSet<Network>) -> Self {
        let mut lengths: Vec<u8> = blocks.iter().map(|block| block.bits).collect();
        lengths.sort_unstable();
        lengths.dedup();
        Self { lengths, blocks }
    }

    fn have(&self, address: IpAddr) -> bool {
        let number = number(address);
        self.lengths.iter().any(|&bits| self.blocks.contains(&Network { bits, base: masked(number, bits) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        Network::parse(text).unwrap()
    }

    #[test]
    fn a_network_has_its_addresses_and_no_others() {
        let has = |network_text: &str, address: &str| network(network_text).has(address.parse().unwrap());
        assert!(has("203.0.113.0/24", "203.0.113.255") && !has("203.0.113.0/24", "203.0.114.0"));
        assert!(has("203.0.113.7", "::ffff:203.0.113.7") && has("::ffff:203.0.113.7", "203.0.113.7"));
        assert!(has("2001:db8::/32", "2001:db8:1::1") && !has("2001:db8::/32", "2001:db9::1"));
        assert!(has("0.0.0.0/0", "8.8.8.8") && !has("0.0.0.0/0", "2001:db8::1"));
        assert!(has("::/0", "2001:db8::1"));
    }

    #[test]
    fn what_is_no_network_is_refused() {
        let bad = ["", "x", "203.0.113", "203.0.113.0/33", "203.0.113.1/24", "1.2.3.4/", "1.2.3.4/+8", "::/129", "/8"];
        for text in bad {
            assert!(Network::parse(text).is_none(), "{text}");
        }
    }

    fn texts(by: ListBy, values: &[&str]) -> List {
        let values = Values::Texts(values.iter().map(|text| (*text).into()).collect());
        List { name: "a".into(), kind: ListKind::Block, by, values }
    }

    #[test]
    fn a_short_bin_covers_the_longer_ones() {
        let list = texts(ListBy::Bin, &["621234", "55554444"]);
        assert!(list.has("621234") && list.has("62123499") && list.has("55554444"));
        assert!(!list.has("555544") && !list.has("621235") && !list.has("6212"));
    }

    #[test]
    fn an_address_is_found_in_any_case_and_by_its_domain() {
        let list = texts(ListBy::Email, &["a@example.org", "@spam.test"]);
        assert!(list.has("A@Example.org") && list.has("x@SPAM.test"));
        assert!(!list.has("b@example.org") && !list.has("x@spam.test.org") && !list.has("spam.test"));
    }

    #[test]
    fn a_list_never_shows_who_is_on_it() {
        assert_eq!(format!("{:?}", texts(ListBy::User, &["CANARY"])), "list a (1)");
    }
}
