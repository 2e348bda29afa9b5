//! How the built program begins with what it finds on disk, reloads under load and storms of signals, and speaks with
//! whoever supervises it.

use std::collections::BTreeSet;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::process::{Client, PATIENCE, Sandbox, Site, Traffic, routes_with, run, wait_of_its_own, wait_until};
use crate::takeover::Served;

/// From the last byte written to the new configuration in force (row 39).
const LIVE: Duration = Duration::from_secs(3);

#[test]
fn row_38_a_start_with_a_broken_file_serves_the_last_good_one_until_it_is_repaired() {
    let upstream = Sandbox::start(&Site::new(), &[]);
    let site = Served::site(&upstream);
    let good = fs::read_to_string(site.path("routes.toml")).unwrap();
    let first = Served::start(&site, &upstream, &[]);
    let version = first.status()["config_hash"].clone();
    assert_eq!(first.status()["config"], "on-disk");
    first.stop();
    let kept = site.path("data/last-good.json");
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    let secret = upstream.told["alipay_secret"].as_str().unwrap();
    assert!(!fs::read_to_string(&kept).unwrap().contains(secret));

    site.write("routes.toml", &format!("{good}\nsk_canary = \"sk-CANARY\"\n"));
    let refused = run(Served::command(&site, &upstream).arg("--no-last-good"));
    assert_eq!(refused.code, Some(2), "{refused:?}");
    let elsewhere = run(Served::command(&site, &upstream).args(["--routes", "other.toml"]));
    assert_eq!(elsewhere.code, Some(2), "another file's last good one is none: {elsewhere:?}");

    let second = Served::start(&site, &upstream, &[]);
    let status = second.status();
    assert_eq!((&status["config"], &status["config_hash"]), (&json!("last-good"), &version));
    assert!(!status["last_reload"]["errors"].as_array().unwrap().is_empty(), "{status}");
    assert_eq!(second.admin("/readyz").status, 200);
    assert_eq!(second.metric("weighbridge_config_on_disk_not_in_force"), 1.0);
    assert_eq!(second.chat().status, 200);
    wait_until(PATIENCE, "the log", || second.log().contains("serving the last good one"));
    assert!(!second.log().contains("CANARY"));

    site.write("routes.toml", &format!("{good}[model.repaired]\ncandidates = [\"tokenmix/steady\"]\n"));
    wait_of_its_own(second.pid(), LIVE, "the repair", || second.status()["config"] == "on-disk");
    assert_eq!(second.metric("weighbridge_config_on_disk_not_in_force"), 0.0);
    fs::remove_file(site.path("routes.toml")).unwrap();
    wait_of_its_own(second.pid(), LIVE, "the loss", || second.metric("weighbridge_config_on_disk_not_in_force") == 1.0);
    assert_eq!(second.status()["config"], "last-good");
    second.stop();

    let third = Served::start(&site, &upstream, &[]);
    assert!(third.status().to_string().contains("repaired"), "the newest good one is the last good one");
    third.stop();
    fs::write(&kept, "{}").unwrap();
    assert_eq!(run(&mut Served::command(&site, &upstream)).code, Some(2), "a file of somebody else is of no use");
}

#[test]
fn row_37_ten_reloads_a_second_lose_no_request_and_cut_no_stream() {
    let site = Site::new();
    let sandbox = Sandbox::start(&site, &[]);
    let mut versions = BTreeSet::from([sandbox.version()]);
    let before = sandbox.version();
    let traffic = Traffic::start(&sandbox, 20);
    let streams: Vec<_> = (0..10).map(|_| sandbox.stream("sandbox/steady", 150)).collect();
    let begun = Instant::now();
    for number in 0..30 {
        site.replace("routes.toml", &routes_with(&format!("v{number}")));
        let told = sandbox.reload();
        assert_eq!(told.status, 200, "{told:?}");
        versions.insert(told.json()["config_hash"].as_str().unwrap().to_owned());
        thread::sleep(Duration::from_millis(100).saturating_mul(number + 1).saturating_sub(begun.elapsed()));
    }
    for stream in streams {
        assert_eq!(stream.head.header("wb-config"), Some(before.as_str()), "a stream ends on the table it began with");
        let text = stream.rest().unwrap();
        assert!(text.ends_with("data: [DONE]\n\n") && !text.contains("\"error\""), "{text}");
    }
    let answers = traffic.all_answered();
    assert!(answers.iter().all(|answer| versions.contains(answer.header("wb-config").unwrap())));
    wait_until(PATIENCE, "old snapshots to go", || sandbox.metric("weighbridge_config_snapshots_alive") == 1.0);
}

#[test]
fn row_44_a_storm_of_signals_is_a_few_reloads_and_builds_nothing() {
    let site = Site::new();
    let sandbox = Sandbox::start(&site, &[]);
    let traffic = Traffic::start(&sandbox, 10);
    let count = || sandbox.metric(r#"weighbridge_config_reloads_total{result="success"}"#);
    let version = sandbox.version();
    let pid = sandbox.pid().to_string();
    let storm = "for i in $(seq 500); do kill -HUP $0; done";
    assert!(Command::new("sh").args(["-c", storm, &pid]).status().unwrap().success());
    wait_until(PATIENCE, "the first one", || count() >= 1.0);
    thread::sleep(Duration::from_millis(500));
    println!("{} reloads for 500 signals", count());
    assert!(count() < 250.0, "{}", count());
    assert_eq!((sandbox.version(), sandbox.metric("weighbridge_config_snapshots_alive")), (version, 1.0));
    site.write("routes.toml", &routes_with("after"));
    wait_of_its_own(sandbox.pid(), LIVE, "a change after it", || sandbox.has_route("after"));
    traffic.all_answered();
}

#[test]
fn row_44_a_process_that_was_stopped_for_a_while_goes_on_with_whatever_it_had() {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    let stream = sandbox.stream("sandbox/steady", 60);
    sandbox.signal("STOP");
    let asking = {
        let (mut client, key) = (sandbox.client(), sandbox.key.clone());
        thread::spawn(move || client.chat(&key, "sandbox/steady", &json!({})).unwrap())
    };
    thread::sleep(Duration::from_secs(2));
    sandbox.signal("CONT");
    let text = stream.rest().unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(asking.join().unwrap().status, 200);
    assert_eq!(sandbox.chat("sandbox/steady", &json!({})).status, 200);
}

/// What systemd does for `Type=notify`, `WatchdogSec=` and `LoadCredential=`.
#[test]
fn a_supervisor_hears_of_start_reload_life_and_end_and_gives_credentials() {
    let upstream = Sandbox::start(&Site::new(), &[]);
    let site = Served::site(&upstream);
    fs::create_dir(site.path("credentials")).unwrap();
    site.write("credentials/alipay", upstream.told["alipay_secret"].as_str().unwrap());
    let alipay = fs::read_to_string(site.path("providers/alipay.toml")).unwrap();
    let alipay = alipay.replace("secret_env = \"ALIPAY_SECRET\"", "secret_file = \"$CREDENTIALS_DIRECTORY/alipay\"");
    site.write("providers/alipay.toml", &alipay);
    let socket = UnixDatagram::bind(site.path("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = || {
        let mut state = [0; 256];
        let length = socket.recv(&mut state).unwrap();
        String::from_utf8(state[..length].to_vec()).unwrap()
    };
    let mut command = Served::command(&site, &upstream);
    command.env_remove("ALIPAY_SECRET").env("CREDENTIALS_DIRECTORY", site.path("credentials"));
    command.env("NOTIFY_SOCKET", site.path("notify")).env("WATCHDOG_USEC", "200000");
    let served = Served::spawn(&mut command);
    assert_eq!(hear(), "READY=1\nSTATUS=serving the configuration on disk");
    assert_eq!([hear(), hear()], ["WATCHDOG=1", "WATCHDOG=1"]);
    served.signal("HUP");
    let next = || std::iter::repeat_with(hear).find(|state| state != "WATCHDOG=1").unwrap();
    let reloading = next();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(next(), "READY=1\nSTATUS=serving the configuration on disk");
    let good = fs::read_to_string(site.path("routes.toml")).unwrap();
    site.write("routes.toml", &good.replace("version = 1", "version = 9"));
    served.signal("HUP");
    let told = std::iter::repeat_with(next).find(|state| state.starts_with("READY=1")).unwrap();
    assert!(told.starts_with("READY=1\nSTATUS=serving an earlier configuration, the one on disk is refused"), "{told}");
    let limits = fs::read_to_string(format!("/proc/{}/limits", served.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "S11: no memory goes to disk");
    let most: u64 = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap()
        .split_whitespace()
        .nth(3)
        .unwrap()
        .parse()
        .unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", served.pid())).unwrap();
    let places: u64 = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap().trim().parse().unwrap();
    assert!(places >= most.min(16_384), "the table of descriptors grows no more while there is traffic: {places}");
    served.signal("TERM");
    let last = std::iter::repeat_with(next).find(|state| state.starts_with("STOPPING=1")).unwrap();
    assert_eq!(last, "STOPPING=1\nSTATUS=finishing what is in flight");
    served.stop();
}

/// What systemd does for a `.socket` unit: descriptors from 3 on.
#[test]
fn row_43_sockets_that_were_open_before_the_process_are_served() {
    let upstream = Sandbox::start(&Site::new(), &[]);
    let site = Served::site(&upstream);
    let (data, admin) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses = (data.local_addr().unwrap(), admin.local_addr().unwrap());
    let early = TcpStream::connect(addresses.0).unwrap();
    let mut command = Served::command(&site, &upstream);
    let program = command.get_program().to_owned();
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let variables: Vec<_> =
        command.get_envs().map(|(name, value)| (name.to_owned(), value.unwrap().to_owned())).collect();
    command = Command::new("/bin/sh");
    command.args(["-c", "exec 3<&2 4<&0 2>/dev/null 0</dev/null; LISTEN_PID=$$ exec \"$0\" \"$@\""]).arg(program);
    command.args(arguments).env_clear().envs(variables).current_dir(site.path("."));
    command.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", "admin:data");
    command.stdin(Stdio::from(OwnedFd::from(data))).stderr(Stdio::from(OwnedFd::from(admin))).stdout(Stdio::piped());
    let served = Served::of(command.spawn().unwrap());
    assert_eq!((served.data, served.admin), addresses);
    assert_eq!(served.chat().status, 200);
    assert_eq!(Client::to(addresses.1).call("GET", "/readyz", &[], "").unwrap().status, 200);
    drop(early);
    served.stop();
}
