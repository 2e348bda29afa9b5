//! What conditions may say, and where the mistakes of the others are shown.

use proptest::prelude::*;

use super::*;

fn known(lists: &[Arc<List>], counters: &[&str], text: &str) -> Result<Condition, Vec<Fault>> {
    let counters: Vec<Arc<str>> = counters.iter().map(|name| Arc::from(*name)).collect();
    compile(text, Known { about: About::Payment, lists, counters: &counters })
}

fn compiled(text: &str) -> Result<Condition, Vec<Fault>> {
    known(&[], &["card_1h"], text)
}

/// Code, the marked text, the message and the hint of the only mistake.
fn mistake(text: &str) -> (Code, &str, String) {
    let faults = compiled(text).err().unwrap_or_else(|| panic!("{text} compiles"));
    let [Fault { span, code, message, hint }] = &faults[..] else { panic!("{faults:?}") };
    let said = hint.as_ref().map_or_else(|| message.clone(), |hint| format!("{message}; {hint}"));
    (*code, text.get(span.clone()).unwrap(), said)
}

#[test]
fn what_the_documentation_shows_compiles() {
    let good = [
        "merchant.category == \"electronics\" && amount >= money(\"500.00 CNY\")",
        "merchant.category == 'digital'",
        "money('500.00 CNY') < amount",
        "user.country != merchant.country",
        "user.country in ['CN', 'TH'] || !has(user.country)",
        "\"fx\" in features",
        "user.registered_days < 7 && device.known_days <= -1",
        "hour_utc in [0, 1, 2, 23]",
        "device.ip in ['203.0.113.0/24', '2001:db8::/32']",
        "device.ip != '203.0.113.7'",
        "has(device.ip) && has(user.registered_days)",
        "subject.startsWith('gift') || subject.endsWith(\"卡\") || subject.contains('券')",
        "caller.tenant == 'shop' && caller.id == 'checkout' && currency == 'CNY'",
        "instrument.type == 'card' && instrument.bin in ['621234']",
        "velocity.card_1h > 5 && out_trade_no.startsWith('T') && device.id == 'd' && user.id == 'u' && merchant.id == 'm'",
        "true",
        "!(false)",
        "// only at night\nhour_utc < 6",
        r"subject == r'\d' || subject == 'a\'b'",
    ];
    for text in good {
        if let Err(faults) = compiled(text) {
            panic!("{text}: {faults:?}");
        }
    }
}

#[test]
fn brackets_that_change_nothing_make_no_difference() {
    let both = |a: &str, b: &str| (compiled(a).unwrap(), compiled(b).unwrap());
    let (a, b) = both("true && (false && true)", "(true && false) && true");
    assert!(a == b);
    let (a, b) = both("money('1.00 CNY') < amount", "amount > money(\"1.00 CNY\")");
    assert!(a == b);
}

#[test]
fn a_name_nobody_knows_is_marked_from_its_first_letter_to_its_last() {
    let (code, marked, said) = mistake("amount > money('1 CNY') && merchant.categry == 'x'");
    assert_eq!((code, marked), (Code::UnknownName, "merchant.categry"));
    assert_eq!(said, "unknown name `merchant.categry`; did you mean `merchant.category`?");
    assert!(mistake("has(usr.country)").2.contains("did you mean `user.country`?"));
    assert_eq!(mistake("merchant == 'm'").1, "merchant");
    assert!(mistake("merchant == 'm'").2.contains("known: merchant.id, merchant.category, merchant.country"));
    assert!(mistake("velocity.card_1hh > 1").2.contains("did you mean `velocity.card_1h`?"));
    assert_eq!(mistake("x").0, Code::UnknownName);
    let nothing = known(&[], &[], "velocity.a > 1").err().unwrap();
    assert_eq!(nothing[0].hint.as_deref(), Some("this configuration counts nothing"));
}

#[test]
fn all_mistakes_of_names_and_types_are_found_at_once() {
    let faults = compiled("usr.id == 'a' && amount > 5 || hour_utc == 'x'").err().unwrap();
    let codes: Vec<Code> = faults.iter().map(|fault| fault.code).collect();
    assert_eq!(codes, [Code::UnknownName, Code::WrongType, Code::WrongType]);
}

#[test]
fn types_that_do_not_go_together_are_marked_at_the_sign_between_them() {
    let cases = [
        ("amount > 500", ">", "write amount >= money(\"500.00 CNY\")"),
        ("amount == '500'", "==", "money("),
        ("hour_utc < 'x'", "<", "a whole number and a text"),
        ("user.id < 'x'", "<", "compare a name with == or !="),
        ("'a' == 'b'", "==", "compare a name"),
        ("user.id == 5", "==", "a text and a whole number"),
        ("features == 'fx'", "==", "write \"fx\" in features"),
        ("user.id in 'abc'", "in", "write user.country in"),
        ("user.id in features", "in", "write user.country in"),
        ("(hour_utc == 1) == true", "==", "write && for and"),
        ("money('1 CNY') == money('1 CNY')", "==", "an amount and an amount"),
        ("device.ip < '203.0.113.7'", "<", "an address and a text"),
    ];
    for (text, marked, said) in cases {
        let found = mistake(text);
        assert_eq!((found.0, found.1), (Code::WrongType, marked), "{text}");
        assert!(found.2.contains(said), "{text}: {}", found.2);
    }
}

#[test]
fn a_condition_must_be_true_or_false() {
    for text in ["user.id", "hour_utc", "'x'", "5", "amount", "['a']", "features", "money('1 CNY')"] {
        let (code, marked, said) = mistake(text);
        assert!(code == Code::WrongType && said.contains("this must be true or false"), "{text}: {said}");
        assert!(text.contains(marked), "{text}: {marked}");
    }
    assert_eq!(mistake("true && user.id").1, "user.id");
    assert_eq!(mistake("!hour_utc").1, "hour_utc");
}

#[test]
fn what_could_never_be_true_is_a_mistake() {
    let cases = [
        ("user.country == 'cn'", "'cn'", "ISO 3166-1"),
        ("user.country in ['CN', 'UK']", "'UK'", "ISO 3166-1"),
        ("currency == 'RMB'", "'RMB'", "ISO 4217"),
        ("instrument.bin == '6212'", "'6212'", "6 to 8 digits"),
        ("merchant.id == ''", "''", "empty"),
        ("device.ip == '203.0.113'", "'203.0.113'", "not an IP address"),
        ("device.ip == '10.0.0.0/8'", "'10.0.0.0/8'", "a network is written"),
        ("device.ip in ['10.0.0.1/8']", "'10.0.0.1/8'", "not an IP address or network"),
        ("amount > money('5.001 CNY')", "'5.001 CNY'", "2 decimals"),
        ("amount > money('5')", "'5'", "one space and a currency"),
        ("amount > money('5 EURO')", "'5 EURO'", "one space and a currency"),
    ];
    for (text, marked, said) in cases {
        let found = mistake(text);
        assert_eq!((found.0, found.1), (Code::BadValue, marked), "{text}");
        assert!(found.2.contains(said), "{text}: {}", found.2);
    }
}

#[test]
fn functions_that_do_not_exist_or_are_used_wrongly_are_marked_by_name() {
    let cases = [
        ("mony('1 CNY') < amount", "mony", "did you mean `money`?"),
        ("subject.startswith('a')", "startswith", "did you mean `startsWith`?"),
        ("subject.matches('a+')", "matches", "regular expressions"),
        ("size(subject) > 1", "size", "no such function"),
        ("amount > money(500)", "500", "money(\"500.00 CNY\")"),
        ("amount > money()", "money", "is given 0"),
        ("amount > money('1 CNY', '2')", "money", "is given 2"),
        ("hour_utc.startsWith('1')", "hour_utc", "a function of texts"),
        ("subject.startsWith(user.id)", "user.id", "a text in quotes"),
        ("in_list('nobody')", "'nobody'", "no such list"),
        ("features.exists(f, f == 'fx')", "exists", "conditions have no loops"),
    ];
    for (text, marked, said) in cases {
        let found = mistake(text);
        assert_eq!(found.1, marked, "{text}: {}", found.2);
        assert!(found.2.contains(said), "{text}: {}", found.2);
    }
}

#[test]
fn what_the_language_has_and_conditions_do_not_is_named() {
    let cases = [
        ("hour_utc + 1 > 3", "+", "numbers are compared, not computed"),
        ("hour_utc > 3 ? true : false", "?", "two policies"),
        ("merchant['id'] == 'm'", "[", "fields are written with a point"),
        ("hour_utc > 1.5", "1.5", "a number with decimals"),
        ("hour_utc > 1u", "1u", "a number with a letter"),
        ("user.id == null", "null", "null"),
        ("{'a': 1} == {'a': 1}", "{", "maps or structures"),
        ("'a'.b == 'x'", "'a'", "only names have fields"),
    ];
    for (text, marked, said) in cases {
        let found = mistake(text);
        assert_eq!(found.1, marked, "{text}: {}", found.2);
        assert!(found.2.contains(said), "{text}: {}", found.2);
    }
}

#[test]
fn a_mistake_of_grammar_is_marked_where_it_is() {
    let cases = [
        ("user.id = 'a'", "=", "write == to compare"),
        ("user.id == 'a' and hour_utc > 1", "and", "write && for and"),
        ("user.id == 'a' or hour_utc > 1", "or", "write || for or"),
        ("user.id == ", "", "ends too early"),
        ("(user.id == 'a'", "", "ends too early"),
        ("", "", "ends too early"),
        ("  ", "", "ends too early"),
        ("user.id == 'a", "'a", "a text is written"),
        ("user.id == “a”", "“", "a text is written"),
        ("subject == '电' && &", "&", "cannot stand here"),
        ("hour_utc ==\n  && true", "&", "cannot stand here"),
        ("has(5)", "5", "cannot stand here"),
    ];
    for (text, marked, said) in cases {
        let found = mistake(text);
        assert_eq!((found.0, found.1), (Code::Syntax, marked), "{text}: {}", found.2);
        assert!(found.2.contains(said), "{text}: {}", found.2);
    }
}

#[test]
fn s16_no_condition_is_longer_or_deeper_than_anybody_needs() {
    let deep = |depth: usize| format!("{}true{}", "(".repeat(depth), ")".repeat(depth));
    assert!(compiled(&deep(DEEPEST)).is_ok());
    assert!(mistake(&deep(DEEPEST + 1)).2.contains("nested more than 16 deep"));
    assert!(mistake(&format!("{}true", "!".repeat(40))).2.contains("nested more"));
    assert!(mistake(&"a.".repeat(300)).2.contains("more than 250 words"));
    assert!(mistake(&format!("user.id == '{}'", "x".repeat(LONGEST))).2.contains("longer than 1000 bytes"));
    let wide = vec!["!(hour_utc == -1)"; 25].join(" && ");
    assert!(compiled(&wide).is_ok(), "wide is not deep");
}

#[test]
fn s15_a_shown_line_has_signs_and_public_names_and_nothing_else() {
    let shown = |text: &str, span: Range<usize>| masked(text, &span);
    let text = "user.id == 'CANARY' && canary_x.Canary > 12345 && x(\"CANARY";
    let MaskedLine { text: line, .. } = shown(text, 0..7);
    assert_eq!(line, "when = 'user.id == … && ….… > … && …(…'");
    let line = shown("merchant.categry == 'a'", 0..16);
    assert_eq!(line.text, "when = 'merchant.categry == …'");
    assert_eq!(line.text.get(line.caret), Some("merchant.categry"));
    let line = shown("true &&\n  usr.id == 'a'", 10..16);
    assert_eq!((line.text.as_str(), line.caret), (" usr.id == …", 1..7));
    let line = shown("user.id ==", 10..10);
    assert_eq!((line.text.as_str(), line.text.get(line.caret.clone())), ("when = 'user.id =='", Some("'")));
}

use super::super::mask::MaskedLine;

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,60}") {
        let _ = compiled(&text);
    }

    #[test]
    fn no_order_of_words_makes_the_reader_panic_and_every_place_is_in_the_text(
        words in prop::collection::vec(prop::sample::select(WORDS.to_vec()), 0..14),
    ) {
        let text = words.join(" ");
        for Fault { span, .. } in compiled(&text).err().unwrap_or_default() {
            prop_assert!(text.get(span.clone()).is_some(), "{} {:?}", text, span);
            let shown = masked(&text, &span);
            prop_assert!(shown.text.get(shown.caret.clone()).is_some_and(|marked| !marked.is_empty()), "{}", text);
            prop_assert!(!shown.text.contains("CANARY"));
        }
    }
}

const WORDS: [&str; 34] = [
    "user.id",
    "amount",
    "hour_utc",
    "features",
    "device.ip",
    "has(",
    "money(",
    "in_list(",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "==",
    "!=",
    "<",
    ">=",
    "&&",
    "||",
    "!",
    "-",
    "in",
    "'CANARY'",
    "\"CANARY\"",
    "'CANARY",
    "17",
    "1.5",
    ".",
    ",",
    "?",
    ":",
    "\n",
    "subject.contains('CANARY')",
];
