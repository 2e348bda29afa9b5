//! Whatever is rewritten says the same, keeps its comments, and is not rewritten again.

use proptest::prelude::*;

use super::*;
use crate::config::renames::Rename;
use crate::config::report::Report;
use crate::config::tests::file;

/// Names that some later version might have.
const LATER: Renames = Renames(&[
    Rename { section: "routes/model/*", old: "orders", new: "order" },
    Rename { section: "routes/risk", old: "lists", new: "list" },
    Rename { section: "routes/risk/list/[]", old: "title", new: "name" },
    Rename { section: "routes/caller/[]/limits", old: "rpm", new: "requests_per_minute" },
    Rename { section: "provider/limits", old: "parallel", new: "in_flight" },
]);

#[test]
fn what_nobody_sees_is_made_plain() {
    let text = "\n\n# head  \r\na = 1\t \n\n\n\nb = [ 1,   2 ]   # kept  \n\n\n";
    let tidy = "# head\na = 1\n\nb = [ 1,   2 ]   # kept\n";
    assert_eq!(tidied(text).as_deref(), Ok(tidy));
    assert_eq!(tidied(tidy).as_deref(), Ok(tidy));
    assert_eq!(tidied("a = 1"), Ok("a = 1\n".to_owned()));
    assert_eq!(tidied("").as_deref(), Ok(""));
    assert_eq!(tidied("a = "), Err(FormatError::Syntax));
}

#[test]
fn a_string_of_several_lines_stays_as_it_is() {
    let text = "a = '''  \n\n\n  two  \n'''  \nb = \"\"\"\nx \\  \n   y\"\"\"\n\n\nc = 1\n";
    let tidy = "a = '''  \n\n\n  two  \n'''\nb = \"\"\"\nx \\  \n   y\"\"\"\n\nc = 1\n";
    assert_eq!(tidied(text).as_deref(), Ok(tidy));
}

#[test]
fn former_names_are_rewritten_where_they_stand_and_nowhere_else() {
    let text = "# orders\nversion = 1\n[[caller]]\nlimits = { rpm = 5, in_flight = 2 } # rpm\n\
                [model.orders]\norders   = \"weighted\"  # why\n[model.\"a.b\"]\n'orders' = 'fastest'\n\
                [[risk.lists]] # first\ntitle = \"x\"\n[[ risk . lists ]]\ntitle = \"rpm\"\n";
    let (new, renamed) = upgraded_by(LATER, text).unwrap();
    let expected = "# orders\nversion = 1\n[[caller]]\nlimits = { requests_per_minute = 5, in_flight = 2 } # rpm\n\
                [model.orders]\norder   = \"weighted\"  # why\n[model.\"a.b\"]\norder = 'fastest'\n\
                [[risk.list]] # first\nname = \"x\"\n[[ risk . list ]]\nname = \"rpm\"\n";
    assert_eq!(new, expected);
    assert_eq!(renamed.iter().map(|renamed| renamed.line).collect::<Vec<_>>(), [4, 6, 8, 9, 10, 11, 12]);
    assert_eq!(upgraded_by(LATER, &new), Ok((new.clone(), Vec::new())), "once is enough");
    let provider = "protocol = \"openai\"\n[limits]\nparallel = 3\n";
    assert_eq!(upgraded_by(LATER, provider).unwrap().0, provider.replace("parallel", "in_flight"));
}

#[test]
fn a_key_that_is_there_by_both_names_stays() {
    let text = "[model.m]\norder = \"weighted\"\norders = \"fastest\"\n";
    assert_eq!(upgraded_by(LATER, text), Ok((text.to_owned(), Vec::new())));
}

#[test]
fn nothing_has_a_former_name_yet() {
    let example = crate::config::builtin::ROUTES;
    assert_eq!(upgraded(example), Ok((example.to_owned(), Vec::new())));
}

#[test]
fn w001_a_former_name_is_read_and_told_and_refused_beside_the_new_one() {
    use crate::config::raw::Document;
    use crate::config::raw::routes::{Part, RawRoutes};
    let read = |text: &str| {
        let source = file("routes.toml", text);
        let report = Report::new(std::iter::once(&source)).with_renames(LATER);
        let document = Document::parse(&source, 0, &report);
        let raw = RawRoutes::read(&document.root(schema::ROUTES, &report), Part::Main);
        let order = raw.models[0].order.as_ref().map(|order| order.value.label());
        (order, report.renamed(), report.into_errors())
    };
    let (order, renamed, errors) = read("version = 1\n[model.m]\ncandidates = []\norders = \"fastest\"\n");
    assert_eq!((order, errors), (Some("fastest"), Vec::new()));
    let told = "routes.toml:4:1: `orders` is called `order` now (model.m.orders); rewrite the file with: weighbridge fmt --upgrade";
    assert_eq!(renamed.iter().map(ToString::to_string).collect::<Vec<_>>(), [told]);
    let (order, _, errors) =
        read("version = 1\n[model.m]\ncandidates = []\norders = \"fastest\"\norder = \"cheapest\"\n");
    assert_eq!(order, Some("cheapest"));
    assert!(errors[0].message.contains("both are there"), "{errors:?}");
}

/// Lines of TOML with blanks and comments where they may be.
fn lines() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        Just(String::new()),
        "[ \t]{0,3}#[ a-z\t]{0,8}",
        "[a-c][0-9]{0,4}[ \t]{0,2}=[ \t]{0,2}[0-9]{1,3}[ \t]{0,3}(#[ a-z]{0,5})?",
        "[a-c][0-9]{0,4} = \"[ a-z#]{0,9}\"[ \t]{0,3}",
        "[a-c][0-9]{0,4} = '''[ a-z#\n]{0,20}'''[ \t]{0,3}",
        "[a-c][0-9]{0,4} = \\[[ \n]{0,4}1,[ \n]{0,4}2[ \n]{0,4}\\][ ]{0,2}",
        "\\[[a-c]\\.[a-z]{1,6}\\][ \t]{0,2}",
    ];
    let end = prop_oneof![Just("\n"), Just("\r\n")];
    prop::collection::vec((line, end), 0..12)
        .prop_map(|lines| lines.into_iter().map(|(line, end)| line + end).collect())
}

fn comments(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.trim().strip_prefix('#')).map(str::trim).collect()
}

proptest! {
    #[test]
    fn tidying_keeps_values_and_comments_and_is_done_once(text in lines()) {
        if let Ok(tidy) = tidied(&text) {
            prop_assert_eq!(said(&tidy), said(&text));
            prop_assert_eq!(comments(&tidy), comments(&text));
            prop_assert_eq!(tidied(&tidy), Ok(tidy.clone()));
        }
    }

    #[test]
    fn valid_text_is_never_refused(text in lines()) {
        prop_assert_ne!(tidied(&text), Err(FormatError::Changed));
    }

    #[test]
    fn upgrading_is_done_once_and_keeps_every_line(orders in prop::collection::vec("[a-z]{1,8}", 0..6)) {
        let sections = orders.iter().enumerate().map(|(index, word)| format!("[model.m{index}] # {word}\norders = '{word}' # orders\n"));
        let text: String = sections.collect();
        let (new, renamed) = upgraded_by(LATER, &text).unwrap();
        prop_assert_eq!(renamed.len(), orders.len());
        prop_assert_eq!(new.replace("\norder =", "\norders ="), text);
        prop_assert_eq!(upgraded_by(LATER, &new), Ok((new.clone(), Vec::new())));
    }
}
