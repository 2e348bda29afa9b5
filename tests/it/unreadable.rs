//! Configuration that may not be read, to a process that is not allowed everything (row 38).

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::process::{Sandbox, Site, Traffic, wait_until, weighbridge};

const LIVE: Duration = Duration::from_secs(5);

/// The program without the rights that make every file readable, also where tests run as root.
fn humble() -> Command {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let is_root = status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"));
    if !is_root {
        return weighbridge();
    }
    let mut command = Command::new("/usr/bin/setpriv");
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.args(["--bounding-set=-all", "--inh-caps=-all"]).arg(env!("CARGO_BIN_EXE_weighbridge"));
    command
}

fn set(site: &Site, name: &str, mode: u32) {
    fs::set_permissions(site.path(name), Permissions::from_mode(mode)).unwrap();
}

/// What happens to a file, how it is undone, which file is told and in which words.
type Loss = (&'static str, fn(&Site), fn(&Site), &'static str, &'static str);

const LOSSES: &[Loss] = &[
    (
        "a file without rights",
        |site| set(site, "routes.toml", 0o000),
        |site| set(site, "routes.toml", 0o644),
        "routes.toml",
        "permission denied",
    ),
    (
        "a provider file without rights",
        |site| set(site, "providers/tokenmix.toml", 0o000),
        |site| set(site, "providers/tokenmix.toml", 0o644),
        "providers/tokenmix.toml",
        "permission denied",
    ),
    (
        "a folder of providers without rights",
        |site| set(site, "providers", 0o000),
        |site| set(site, "providers", 0o755),
        "providers",
        "permission denied",
    ),
    (
        "a folder that may not be entered",
        |site| set(site, ".", 0o000),
        |site| set(site, ".", 0o755),
        "routes.toml",
        "permission denied",
    ),
    (
        "links that lead to each other",
        |site| {
            fs::rename(site.path("routes.toml"), site.path("kept")).unwrap();
            symlink("other", site.path("routes.toml")).unwrap();
            symlink("routes.toml", site.path("other")).unwrap();
        },
        |site| {
            fs::remove_file(site.path("other")).unwrap();
            fs::rename(site.path("kept"), site.path("routes.toml")).unwrap();
        },
        "routes.toml",
        "cannot be read",
    ),
    (
        "a file in the place of the folder of providers",
        |site| {
            fs::rename(site.path("providers"), site.path("kept")).unwrap();
            site.write("providers", "nothing");
        },
        |site| {
            fs::remove_file(site.path("providers")).unwrap();
            fs::rename(site.path("kept"), site.path("providers")).unwrap();
        },
        "providers",
        "not a folder",
    ),
];

#[test]
fn row_38_what_may_not_be_read_changes_nothing_and_is_told_until_it_may() {
    let site = Site::new();
    let sandbox = Sandbox::start_by(humble(), &site, &[]);
    let traffic = Traffic::start(&sandbox, 5);
    let version = sandbox.version();
    let not_in_force = || sandbox.metric("weighbridge_config_on_disk_not_in_force");
    for (what, lose, restore, file, told) in LOSSES {
        lose(&site);
        wait_until(LIVE, what, || not_in_force() == 1.0);
        let status = sandbox.status();
        assert_eq!((&status["config_hash"], &status["config"]), (&json!(version), &json!("last-good")), "{what}");
        let error = &status["last_reload"]["errors"][0];
        assert_eq!((error["file"].as_str(), error["message"].as_str()), (Some(*file), Some(*told)), "{what}");
        assert_eq!(sandbox.admin_get("/readyz").status, 200, "{what}");
        let asked = sandbox.reload();
        assert_eq!((asked.status, asked.json()["errors"][0]["file"].as_str()), (422, Some(*file)), "{what}");
        restore(&site);
        wait_until(LIVE, what, || not_in_force() == 0.0);
        assert_eq!(
            (sandbox.version(), sandbox.status()["last_reload"]["errors"].clone()),
            (version.clone(), json!([]))
        );
    }
    let answers = traffic.all_answered();
    assert!(answers.iter().all(|answer| answer.header("wb-config") == Some(&version)));
    wait_until(LIVE, "the log", || sandbox.log().contains("permission denied"));
}
