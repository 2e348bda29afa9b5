//! Policies and lists as a configuration has them: what they become, and what is refused.

use super::super::tests::{compiled_with_lists, lines, mistakes_of, table_of};
use crate::config::policy::Policy;
use crate::config::table::RoutingTable;
use crate::config::{TableDiff, remarks};
use crate::domain::decision::Action;
use crate::domain::policy::{FailureModes, OnExhausted, VendorAction};

fn policies(table: &RoutingTable) -> &[Policy] {
    &table.risk_route().unwrap().rules.policies
}

/// The thresholds of the only policy, in thousandths.
fn thresholds(risk: &str, bands: &str) -> (u32, u32, Option<u32>) {
    let table = table_of(&format!("{risk}\n[[risk.policy]]\nname = \"a\"\nbands = {{ {bands} }}"));
    let bands = policies(&table)[0].ruling.applied.bands;
    let thousandths = |score: crate::domain::decision::Score| score.micro() / 1000;
    (thousandths(bands.pass_below()), thousandths(bands.review_from()), bands.reject_from().map(thousandths))
}

#[test]
fn an_inherited_threshold_gives_way_to_a_written_one() {
    // [risk] has 0.3 and 0.7.
    assert_eq!(thresholds("", "reject_from = 0.5"), (300, 500, Some(500)));
    assert_eq!(thresholds("", "pass_below = 0.8"), (800, 800, None));
    assert_eq!(thresholds("", "review_from = 0.2"), (200, 200, None));
    assert_eq!(thresholds("", "review_from = 0.9"), (300, 900, None));
    assert_eq!(thresholds("", "reject_from = 0.1"), (100, 100, Some(100)));
    assert_eq!(thresholds("", "pass_below = 0.1, reject_from = 0.9"), (100, 700, Some(900)));
    assert_eq!(thresholds("", ""), (300, 700, None));
}

#[test]
fn written_thresholds_that_cross_are_a_mistake() {
    let crossing = |bands: &str| mistakes_of(&format!("[[risk.policy]]\nname = \"a\"\nbands = {{ {bands} }}"));
    assert!(
        crossing("pass_below = 0.8, reject_from = 0.5")
            .contains("the thresholds cross (risk.policy.bands.reject_from)")
    );
    assert!(
        crossing("pass_below = 0.8, review_from = 0.5")
            .contains("the thresholds cross (risk.policy.bands.review_from)")
    );
    assert!(crossing("pass_below = 1.1").contains("must be between 0 and 1"));
}

#[test]
fn a_policy_has_from_the_route_what_it_does_not_say() {
    let table = table_of(
        r#"vendor_action = "advisory"
on_exhausted = { deadline = { accept_up_to = "5.00 CNY" }, not_authentic = "reject" }
[[risk.policy]]
name = "as the route"
[[risk.policy]]
name = "its own way"
when = 'hour_utc < 6'
vendor_action = "floor"
on_exhausted = "local_rules"
action = "CHALLENGE"
[[risk.list]]
name = "friends"
kind = "allow"
by = "user"
values = []"#,
    );
    let [first, second] = policies(&table) else { panic!() };
    let route = table.risk_route().unwrap();
    assert_eq!(first.ruling.on_exhausted, route.ruling.on_exhausted);
    assert_eq!((first.ruling.vendor_action, first.ruling.at_least), (VendorAction::Advisory, None));
    assert_eq!(first.ruling.applied.version, route.ruling.applied.version);
    assert_eq!(second.ruling.on_exhausted, FailureModes::all(OnExhausted::LocalRules));
    assert_eq!((second.ruling.vendor_action, second.ruling.at_least), (VendorAction::Floor, Some(Action::Challenge)));
    assert_eq!(&**second.name(), "its own way");
    let modes = route.ruling.on_exhausted;
    assert_eq!((modes.not_authentic, modes.unavailable), (OnExhausted::Reject, OnExhausted::Review));
    assert!(matches!(modes.deadline, OnExhausted::AcceptUpTo(_)));
}

#[test]
fn c7_an_answer_that_cannot_be_trusted_is_never_accepted_by_configuration() {
    let modes = |text: &str| mistakes_of(&format!("on_exhausted = {{ {text} }}"));
    for cause in ["not_authentic", "no_verdict", "budget"] {
        let found = modes(&format!("{cause} = {{ accept_up_to = \"5.00 CNY\" }}"));
        assert!(found.contains("nothing is accepted after such an answer: whoever can"), "{found}");
        assert!(found.contains(&format!("(risk.on_exhausted.{cause})")), "{found}");
    }
    assert!(modes("").contains("the table is empty"));
    assert!(modes("late = \"review\"").contains("unknown key `late`"));
    assert!(modes("deadline = \"accept\"").contains("known: review, reject, error, local_rules"));
}

#[test]
fn names_are_unique_and_default_is_taken() {
    let two = "[[risk.policy]]\nname = \"a\"\n[[risk.policy]]\nname = \"a\"";
    assert!(mistakes_of(two).contains("the policy's name occurs twice"));
    assert!(
        mistakes_of("[[risk.policy]]\nname = \"default\"").contains("the rule that decides where no policy matches")
    );
    assert!(mistakes_of("[[risk.policy]]\nname = \"a\\nb\"").contains("1 to 64 letters"));
    assert!(mistakes_of("[[risk.policy]]\nwhen = 'true'").contains("missing key `name`"));
    assert!(mistakes_of("[[risk.policy]]\nname = \"a\"\naction = \"PASS\"").contains("kind = \"allow\""));
    let many: String = (0..101).map(|n| format!("[[risk.policy]]\nname = \"p{n}\"\n")).collect();
    assert!(mistakes_of(&many).contains("more than 100 policies"));
}

#[test]
fn a_mistake_is_at_its_column_wherever_the_text_can_be_followed() {
    let at = |when: &str| {
        let found = mistakes_of(&format!("[[risk.policy]]\nname = \"a\"\nwhen = {when}"));
        let (_, place) = found.split_once("routes.toml:").unwrap();
        let mut parts = place.split(':');
        let lines_before = 15;
        (
            parts.next().unwrap().parse::<usize>().unwrap() - lines_before,
            parts.next().unwrap().parse::<usize>().unwrap(),
        )
    };
    assert_eq!(at("'hour_utc < 6 && usr.id == \"a\"'"), (3, 25));
    assert_eq!(at("\"hour_utc < 6 && usr.id == 'a'\""), (3, 25));
    assert_eq!(at("'subject == \"电\" && usr.id == \"a\"'"), (3, 27), "in characters");
    assert_eq!(at("'''\nhour_utc < 6\n  && usr.id == 'a' '''"), (5, 6));
    assert_eq!(at("'''usr.id == 'a' '''"), (3, 11));
    assert_eq!(at("\"\"\"\n  usr.id == 'a'\"\"\""), (4, 3));
    // Escapes in between: the place of the whole text.
    assert_eq!(at("\"hour_utc < 6 && usr.id == \\\"a\\\"\""), (3, 8));
    assert_eq!(at("\"\"\"hour_utc < 6 \\\n && usr.id == 'a'\"\"\""), (3, 8));
}

const LISTS: &str = r#"
[[risk.list]]
name = "friends"
kind = "allow"
by = "user"
values = ["u1", "u2", "u1"]

[[risk.list]]
name = "bad networks"
kind = "block"
by = "ip"
file = "networks.txt"

[[risk.policy]]
name = "a"
when = 'in_list("friends") || in_list("bad networks")'
"#;

#[test]
fn lists_come_strongest_first_and_are_known_to_conditions() {
    let table = compiled_with_lists(LISTS, &[("networks.txt", Ok("203.0.113.0/24 # noisy\n::1\n"))]).unwrap();
    let lists = &table.risk_route().unwrap().rules.lists;
    assert_eq!(
        lists.iter().map(|list| (&*list.name, list.len())).collect::<Vec<_>>(),
        [("bad networks", 2), ("friends", 2)]
    );
    assert!(lists[0].has("203.0.113.9") && !lists[0].has("203.0.114.9"));
}

#[test]
fn s15_a_bad_value_of_a_list_is_shown_by_its_place_only() {
    let text = "1.2.3.4\n\n  CANARY=canary # x\n10.0.0.1/8\n";
    let errors = compiled_with_lists(LISTS, &[("networks.txt", Ok(text))]).unwrap_err();
    let said = lines(&errors);
    assert!(said.contains("lists/networks.txt:3:3: not an IP address or network"), "{said}");
    assert!(said.contains("lists/networks.txt:4:1: "), "{said}");
    let shown = crate::config::render_all(&errors, crate::config::Style::Plain);
    assert!(!shown.to_lowercase().contains("canary") && !shown.contains("10.0"), "{shown}");
    let bin = mistakes_of("[[risk.list]]\nname = \"a\"\nkind = \"block\"\nby = \"bin\"\nvalues = [\"621234\", \"62\"]");
    assert!(bin.contains("not the first 6 to 8 digits"), "{bin}");
    let many = "x\n".repeat(500);
    let errors = compiled_with_lists(LISTS, &[("networks.txt", Ok(&many))]).unwrap_err();
    assert_eq!(errors.len(), 10, "a file that is wrong everywhere does not fill the screen");
}

#[test]
fn a_list_s_file_that_cannot_be_read_is_a_mistake_of_the_key() {
    let said = lines(&compiled_with_lists(LISTS, &[("networks.txt", Err("there is no such file"))]).unwrap_err());
    assert!(said.contains("the list's file: there is no such file (risk.list.file)"), "{said}");
    let list = |text: &str| mistakes_of(&format!("[[risk.list]]\nname = \"a\"\n{text}"));
    assert!(list("kind = \"block\"\nby = \"user\"").contains("missing key `values` or `file`"));
    assert!(list("kind = \"block\"\nby = \"usr\"\nvalues = []").contains("did you mean \"user\"?"));
    assert!(list("kind = \"deny\"\nby = \"user\"\nvalues = []").contains("known: allow, block, review"));
    assert!(list("kind = \"block\"\nby = \"user\"\nvalues = []\nfile = \"a\"").contains("both values and file"));
}

#[test]
fn a_diff_names_policies_and_lists_and_no_values() {
    let file = |text: &'static str| compiled_with_lists(LISTS, &[("networks.txt", Ok(text))]).unwrap();
    let diff = TableDiff::between(&file("1.2.3.4"), &file("1.2.3.5")).to_string();
    assert_eq!(diff, "~ list bad networks: values\n");
    let policy =
        |text: &str| table_of(&format!("[[risk.policy]]\nname = \"a\"\n{text}\n[[risk.policy]]\nname = \"b\""));
    let diff = |old: &str, new: &str| TableDiff::between(&policy(old), &policy(new)).to_string();
    assert_eq!(diff("when = 'hour_utc < 6'", "when = '(hour_utc  <  6)'"), "");
    assert_eq!(
        diff("when = 'hour_utc < 6'", "when = 'hour_utc < 7'\naction = \"REVIEW\""),
        "~ policy a: when, action\n"
    );
    let swapped =
        table_of("[[risk.policy]]\nname = \"b\"\n[[risk.policy]]\nname = \"a\"\n[[risk.policy]]\nname = \"c\"");
    let diff = TableDiff::between(&policy(""), &swapped).to_string();
    assert_eq!(diff, "~ route risk: order of policies\n+ policy c\n");
}

#[test]
fn what_never_decides_is_worth_a_look() {
    let said = remarks::remarks(&table_of(
        r#"on_exhausted = "local_rules"
[[risk.policy]]
name = "a"
when = 'hour_utc < 6'
[[risk.policy]]
name = "b"
when = '6 > 23 || (hour_utc < 6)'
[[risk.policy]]
name = "c"
when = '((hour_utc < 6))'
on_exhausted = "review"
[[risk.policy]]
name = "d"
on_exhausted = "review"
[[risk.policy]]
name = "e"
on_exhausted = "review""#,
    ));
    let unreachable: Vec<&String> = said.iter().filter(|remark| remark.contains("never decides")).collect();
    assert_eq!(
        unreachable,
        [
            "policy \"c\" never decides: \"a\" before it has the same condition",
            "policy \"e\" never decides: \"d\" before it matches everything",
        ]
    );
    assert!(
        said.iter().any(|remark| remark == "rule \"default\": local_rules without an allow list is the same as review")
    );
}
