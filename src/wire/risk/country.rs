//! Which two letters are a country.
//!
//! Only a membership test: names, regions and rules per country are configuration. Source: ISO 3166-1 alpha-2, the 249
//! officially assigned codes (<https://www.iso.org/obp/ui/#search/code/>), as listed by tzdata's `iso3166.tab` on 2026-11-22.

const CODES: &str = "AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT \
     BV BW BY BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH \
     ER ES ET FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT \
     HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS \
     LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI \
     NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW SA SB SC SD SE SG \
     SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG \
     UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW";

/// True for an officially assigned code in upper case.
pub fn is_known(code: &str) -> bool {
    // Each code and the space after it.
    let (spaced, last) = CODES.as_bytes().as_chunks::<3>();
    let known = |[a, b, _]: &[u8; 3]| [*a, *b].as_slice().cmp(code.as_bytes());
    last == code.as_bytes() || spaced.binary_search_by(known).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_the_249_assigned_codes_in_order() {
        let codes: Vec<&str> = CODES.split(' ').collect();
        assert_eq!(codes.len(), 249);
        assert!(codes.is_sorted() && codes.iter().all(|code| code.len() == 2));
        assert!(codes.into_iter().all(is_known));
    }

    #[test]
    fn assigned_codes_are_known_and_others_are_not() {
        assert!(["CN", "TH", "GB", "US", "ZW", "AD"].into_iter().all(is_known));
        assert!(!["UK", "XX", "EU", "cn", "C", "CHN", "", "D ", " D", "ZZ"].into_iter().any(is_known));
    }
}
