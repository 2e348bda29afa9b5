//! Active ISO 4217 currencies and how many decimals each has.
//!
//! The exponents are the whole value of this table: 1 JPY is one minor unit, 1 KWD is a thousand.
//! Source: ISO 4217 list one (<https://www.six-group.com/en/products-services/financial-information/data-standards.html>),
//! as known on 2026-11-22; metals, test codes and funds codes are left out, but for `CLF`,
//! which amounts are really written in.

use std::fmt;

/// One active currency.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Currency {
    code: &'static str,
    exponent: u8,
}

const NO_DECIMALS: &str = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF";
const THREE_DECIMALS: &str = "BHD IQD JOD KWD LYD OMR TND";
/// Units of account that contracts are written in.
const FOUR_DECIMALS: &str = "CLF UYW";
const TWO_DECIMALS: &str = "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD \
     CDF CHF CNY COP CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR \
     ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN \
     NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC \
     SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG";

impl Currency {
    /// US dollars.
    pub const USD: Self = Self { code: "USD", exponent: 2 };

    const LISTS: [(&'static str, u8); 4] =
        [(TWO_DECIMALS, 2), (NO_DECIMALS, 0), (THREE_DECIMALS, 3), (FOUR_DECIMALS, 4)];

    /// Finds an active currency by its upper-case code.
    pub fn parse(code: &str) -> Option<Self> {
        let place = |codes: &'static str| {
            // Each code and the space after it.
            let (spaced, last) = codes.as_bytes().as_chunks::<4>();
            let known = |[a, b, c, _]: &[u8; 4]| [*a, *b, *c].as_slice() == code.as_bytes();
            let place = spaced.iter().position(known).or((last == code.as_bytes()).then_some(spaced.len()))?;
            codes.get(4 * place..4 * place + 3)
        };
        Self::LISTS.into_iter().find_map(|(codes, exponent)| place(codes).map(|code| Self { code, exponent }))
    }

    /// The three letters.
    pub fn code(self) -> &'static str {
        self.code
    }

    /// How many decimals an amount may have.
    pub fn exponent(self) -> u8 {
        self.exponent
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code)
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c9_exponents_follow_iso_4217() {
        let exponent = |code| Currency::parse(code).map(Currency::exponent);
        assert_eq!(exponent("CNY"), Some(2));
        assert_eq!(exponent("ZWG"), Some(2));
        assert_eq!(exponent("JPY"), Some(0));
        assert_eq!(exponent("KWD"), Some(3));
    }

    #[test]
    fn c9_every_code_is_listed_once_and_finds_its_own_exponent() {
        let mut seen = std::collections::BTreeSet::new();
        for (codes, exponent) in Currency::LISTS {
            for code in codes.split(' ') {
                assert!(code.len() == 3 && code.bytes().all(|b| b.is_ascii_uppercase()), "{code:?}");
                assert!(seen.insert(code), "{code} twice");
                assert_eq!(Currency::parse(code), Some(Currency { code, exponent }));
            }
        }
        // ISO 4217 list one has 150-odd currencies that money is paid in; a list that lost a line would show here.
        assert!((145..170).contains(&seen.len()), "{}", seen.len());
    }

    #[test]
    fn c9_what_has_no_hundredths_is_exactly_what_the_standard_says() {
        for code in "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF".split(' ') {
            assert_eq!(Currency::parse(code).map(Currency::exponent), Some(0), "{code}");
        }
        for code in "BHD IQD JOD KWD LYD OMR TND".split(' ') {
            assert_eq!(Currency::parse(code).map(Currency::exponent), Some(3), "{code}");
        }
        for code in ["CLF", "UYW"] {
            assert_eq!(Currency::parse(code).map(Currency::exponent), Some(4), "{code}");
        }
    }

    #[test]
    fn unknown_lower_case_and_withdrawn_codes_are_not_currencies() {
        for code in ["cny", "DEM", "HRK", "BGN", "XXX", "XTS", "", "CN", "CNYX", " CN", "E U"] {
            assert_eq!(Currency::parse(code), None, "{code:?}");
        }
    }
}
