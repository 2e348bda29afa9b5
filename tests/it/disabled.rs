//! A provider is switched off with one line, while requests come in, and on again.

use serde_json::json;

use crate::process::{PATIENCE, Sandbox, Site, repository, run, wait_until, weighbridge};

const OFF: &str = "version = 1\ndisabled = [\"tokenmix\"]\n";

fn routes() -> String {
    let text = std::fs::read_to_string(repository().join("routes.toml")).unwrap();
    // The shipped tests are of the shipped candidates.
    text.split("[[test]]").next().unwrap().to_owned()
}

#[test]
fn a_provider_that_is_switched_off_is_asked_by_nobody_and_its_routes_go_on_with_the_others() {
    let site = Site::new();
    site.write("routes.toml", &routes());
    let sandbox = Sandbox::start(&site, &[]);
    let asked = || sandbox.chat("summary", &json!({"user": "nobody-else"}));
    assert_eq!(asked().header("wb-provider"), Some("tokenmix"));
    site.replace("routes.toml", &routes().replacen("version = 1\n", OFF, 1));
    assert_eq!(sandbox.reload().status, 200);
    for _ in 0..5 {
        let answer = asked();
        assert_eq!(
            (answer.status, answer.header("wb-provider"), answer.header("wb-attempts")),
            (200, Some("openrouter"), Some("1"))
        );
    }
    let explained = weighbridge().args(["explain", "--model", "summary"]).current_dir(site.path("")).output().unwrap();
    let told = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(told.contains("not asked, because disabled in the configuration: tokenmix"), "{told}");
    let checked = run(weighbridge().args(["check", "--allow-missing-secrets"]).current_dir(site.path("")));
    assert!(checked.out.contains("disabled                     tokenmix"), "{} {}", checked.out, checked.err);

    site.replace("routes.toml", &routes());
    assert_eq!(sandbox.reload().status, 200);
    wait_until(PATIENCE, "it to be asked again", || asked().header("wb-provider") == Some("tokenmix"));
}

#[test]
fn nobody_can_switch_off_the_last_candidate_of_a_route() {
    let site = Site::new();
    site.write("routes.toml", &routes());
    let sandbox = Sandbox::start(&site, &[]);
    site.replace("routes.toml", &routes().replacen("version = 1\n", "version = 1\ndisabled = [\"alipay\"]\n", 1));
    let refused = sandbox.reload();
    assert_eq!(refused.status, 422);
    let said = sandbox.status().to_string();
    assert!(said.contains("every candidate is disabled") && said.contains("disabled by routes.toml:8"), "{said}");
    assert_eq!(sandbox.chat("summary", &json!({})).status, 200, "the table from before serves");
}
