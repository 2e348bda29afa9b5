//! Reading along: the admin plane's stream of access lines, `weighbridge tail` before it, and the log of what operators do.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::process::{Client, PATIENCE, Sandbox, Site, run, wait_until, weighbridge};

/// A raw reader of `/-/tail`.
struct Follower(BufReader<TcpStream>);

impl Follower {
    fn open(admin: SocketAddr, query: &str) -> Self {
        Self::open_on(TcpStream::connect(admin).unwrap(), admin, query)
    }

    fn open_on(mut stream: TcpStream, admin: SocketAddr, query: &str) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!("GET /-/tail?{query} HTTP/1.0\r\nhost: {admin}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        Self(BufReader::new(stream))
    }

    /// Reads the head and the first heartbeat: from here on it is heard.
    fn following(admin: SocketAddr, query: &str) -> Self {
        Self::following_on(TcpStream::connect(admin).unwrap(), admin, query)
    }

    fn following_on(stream: TcpStream, admin: SocketAddr, query: &str) -> Self {
        let mut follower = Self::open_on(stream, admin, query);
        let head = follower.head();
        assert!(head.starts_with("HTTP/1.0 200 ") && head.contains("content-type: application/x-ndjson"), "{head}");
        assert!(head.contains("cache-control: no-store"), "{head}");
        assert_eq!(follower.line(), "\n");
        follower
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let line = self.line();
            assert!(!line.is_empty(), "{head}");
            head.push_str(&line);
        }
        head
    }

    fn call(&mut self) -> Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn refused(mut self) -> (String, String) {
        let head = self.head();
        let mut told = String::new();
        self.0.read_to_string(&mut told).unwrap();
        (head.split(' ').nth(1).unwrap().to_owned(), told)
    }
}

fn risk(sandbox: &Sandbox) {
    let body = json!({
        "out_trade_no": "T-1", "total_amount": "88.00", "currency": "CNY", "subject": "CANARY-subject",
        "merchant": { "id": "m1", "category": "food", "country": "CN" },
        "user": { "id": "CANARY-user", "country": "CN", "email": "canary@example.com", "phone": "+8613800138000" },
        "device": { "id": "CANARY-device", "ip": "203.0.113.7" }
    });
    let key = [("authorization".to_owned(), format!("Bearer {}", sandbox.key))];
    let answer = sandbox.client().call("POST", "/v1/risk/assessments", &key, &body.to_string()).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Actions in the log, as (action, result, status).
fn actions(sandbox: &Sandbox) -> Vec<Value> {
    let log = sandbox.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["target"] == "admin").collect()
}

#[test]
fn a_follower_sees_each_call_as_the_log_has_it() {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    let mut follower = Follower::following(sandbox.admin, "");
    let answer = sandbox.chat("sandbox/fail-503", &json!({}));
    let call = follower.call();
    assert_eq!(call["call.id"].as_str(), answer.header("x-request-id"));
    assert_eq!((&call["route.id"], &call["caller.id"]), (&json!("sandbox/fail-503"), &json!("sandbox")));
    assert_eq!((&call["status"], &call["outcome"], &call["target"]), (&json!(200), &json!("ok"), &json!("access")));
    let id = answer.header("x-request-id").unwrap().to_owned();
    wait_until(PATIENCE, "the line in the log", || sandbox.log().contains(&id));
    let logged = sandbox.log().lines().find(|line| line.contains(&id)).map(serde_json::from_str::<Value>);
    let (mut logged, mut seen) = (logged.unwrap().unwrap(), call);
    // Written one after the other.
    logged["timestamp"] = json!(0);
    seen["timestamp"] = json!(0);
    assert_eq!(seen, logged);
}

#[test]
fn a_follower_sees_only_what_it_asked_for() {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    let mut failed = Follower::following(sandbox.admin, "outcome=failed");
    let mut one = Follower::following(sandbox.admin, "route=sandbox%2fsteady&caller=sandbox");
    let mut nobody = Follower::following(sandbox.admin, "caller=backoffice");
    sandbox.chat("summary", &json!({}));
    sandbox.chat("sandbox/steady", &json!({}));
    let refused = sandbox.client().call("POST", "/v1/chat/completions", &[], "{}").unwrap();
    assert_eq!(refused.status, 401);
    assert_eq!(one.call()["route.id"], "sandbox/steady");
    assert_eq!(failed.call()["outcome"], "unauthorised");
    nobody.0.get_mut().set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(nobody.0.read_line(&mut String::new()).is_err(), "nothing for it");

    // Whose key is known is named, also where it may not ask.
    nobody.0.get_mut().set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let key = [("authorization".to_owned(), "Bearer wb-demo-backoffice-0123456789abcdef".to_owned())];
    let refused = sandbox.client().call("POST", "/v1/risk/assessments", &key, "{}").unwrap();
    assert_eq!(refused.status, 403);
    let told = nobody.call();
    assert_eq!((&told["caller.id"], &told["error.code"]), (&json!("backoffice"), &json!("not_allowed")));
}

#[test]
fn nothing_of_a_prompt_a_card_or_a_person_is_shown() {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    let mut follower = Follower::following(sandbox.admin, "");
    let prompt = json!([{ "role": "user", "content": "CANARY-prompt 4111111111111111 canary@example.com" }]);
    sandbox.chat("summary", &json!({ "messages": prompt, "user": "CANARY-user" }));
    sandbox.chat("CANARY-model\u{1b}[2J", &json!({}));
    risk(&sandbox);
    let seen: Vec<_> = (0..3).map(|_| follower.line()).collect();
    for line in &seen {
        for secret in ["CANARY", "canary", "4111", "13800138000", "203.0.113", "T-1", "88.00", &sandbox.key, "\u{1b}"] {
            assert!(!line.contains(secret), "{secret}: {line}");
        }
    }
    assert!(seen[2].contains("\"decision\":\"PASS\""), "{seen:?}");
}

#[test]
fn what_cannot_be_followed_is_said() {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    for (query, status, told) in [
        ("route=nowhere", "404", "no route has this name"),
        ("caller=nobody", "404", "no caller has this name"),
        ("outcome=fine", "400", "outcome is one of ok"),
        ("model=x", "400", "filter by route, caller or outcome"),
    ] {
        let refused = Follower::open(sandbox.admin, query).refused();
        assert!(refused.0 == status && refused.1.contains(told), "{query}: {refused:?}");
    }
    let posted = Client::to(sandbox.admin).call("POST", "/-/tail", &[], "").unwrap();
    assert_eq!((posted.status, posted.header("allow")), (405, Some("GET")));

    let mut followers: Vec<_> = (0..8).map(|_| Follower::following(sandbox.admin, "")).collect();
    let crowded = Follower::open(sandbox.admin, "").refused();
    assert!(crowded.0 == "503" && crowded.1.contains("8 readers follow already"), "{crowded:?}");
    followers.clear();
    wait_until(PATIENCE, "a free seat", || Follower::open(sandbox.admin, "").head().contains(" 200 "));
}

#[test]
fn s14_the_tail_is_guarded_like_the_rest_of_the_admin_plane() {
    let token = "an-admin-token-of-some-length";
    let sandbox = Sandbox::start_with(&Site::new(), &[("WEIGHBRIDGE_ADMIN_TOKEN", token)], &[]);
    let get = |headers: &[(String, String)]| Client::to(sandbox.admin).call("GET", "/-/tail", headers, "").unwrap();
    assert_eq!(get(&[]).status, 401);
    assert_eq!(get(&[("authorization".to_owned(), format!("Bearer {}", sandbox.key))]).status, 401);
    let open = Sandbox::start(&Site::new(), &[]);
    let foreign = [("host".to_owned(), "evil.example".to_owned())];
    assert_eq!(Client::to(open.admin).call("GET", "/-/tail", &foreign, "").unwrap().status, 421);
    assert_eq!(open.client().call("GET", "/-/tail", &[], "").unwrap().status, 404, "never on the data port");
}

#[test]
fn a_reader_that_takes_nothing_holds_nobody_up_and_nothing_is_lost_unsaid() {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    // Little room of its own: the rest is the kernel's and the queue.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4 * 1024).unwrap();
    socket.connect(&sandbox.admin.into()).unwrap();
    let mut slow = Follower::following_on(socket.into(), sandbox.admin, "");
    let mut client = sandbox.client();
    let calls = 2_000;
    for _ in 0..calls {
        assert_eq!(client.call("GET", "/v1/models", &[], "").unwrap().status, 401);
    }
    let (mut seen, mut missed) = (0, 0);
    while seen + missed < calls {
        let line = slow.line();
        let line: Value = if line == "\n" { continue } else { serde_json::from_str(&line).unwrap() };
        match line["missed"].as_u64() {
            Some(more) => missed += more,
            None => seen += 1,
        }
    }
    assert!(seen > 0 && seen + missed == calls, "{seen} seen, {missed} missed of {calls}");
}

/// A connection to the admin plane that asked for this and reads nothing of the answer.
fn deaf(admin: SocketAddr, path: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4 * 1024).unwrap();
    socket.connect(&admin.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {admin}\r\n\r\n").as_bytes()).unwrap();
    stream
}

#[test]
fn pain_42_whoever_watches_and_reads_nothing_delays_no_call() {
    let mut command = Command::new("sh");
    // A log that takes what a pipe holds, and then nothing more.
    command.args(["-c", "mkfifo log && exec \"$0\" \"$@\" 2<>log"]).arg(weighbridge().get_program());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let sandbox = Sandbox::start_by(command, &Site::new(), &[]);
    let watching: Vec<_> =
        ["/-/tail", "/-/tail", "/metrics", "/metrics", "/status.json"].map(|path| deaf(sandbox.admin, path)).into();
    let mut client = sandbox.client();
    let (mut longest, calls) = (Duration::ZERO, 6_000);
    for _ in 0..calls {
        let began = Instant::now();
        assert_eq!(client.call("GET", "/v1/models", &[], "").unwrap().status, 401);
        longest = longest.max(began.elapsed());
    }
    risk(&sandbox);
    let metrics = sandbox.admin_get("/metrics").body;
    let dropped = metrics.lines().find_map(|line| line.strip_prefix("weighbridge_log_dropped_total "));
    assert!(dropped.unwrap().parse::<f64>().unwrap() > 0.0, "the log was read after all");
    // Who waited for one of them would wait until it is closed.
    assert!(longest < Duration::from_secs(5), "a call took {longest:?}");
    drop(watching);
}

/// `weighbridge tail`, running.
struct Tail {
    child: Child,
    lines: Receiver<String>,
    errors: Receiver<String>,
}

impl Tail {
    fn start(admin: SocketAddr, variables: &[(&str, &str)], arguments: &[&str]) -> Self {
        let mut command = weighbridge();
        command.envs(variables.iter().copied()).args(["tail", "--admin", &format!("http://{admin}")]).args(arguments);
        let mut child = command.spawn().unwrap();
        let lines = lines(child.stdout.take().unwrap());
        let errors = lines_of_errors(&mut child);
        Self { child, lines, errors }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap()
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines_of_errors(child: &mut Child) -> Receiver<String> {
    lines(child.stderr.take().unwrap())
}

fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (send, receive) = channel();
    thread::spawn(move || BufReader::new(pipe).lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    receive
}

/// Calls until somebody follows and has seen one.
fn first_line(sandbox: &Sandbox, tail: &Tail) -> String {
    let mut line = None;
    wait_until(PATIENCE, "a line of the tail", || {
        sandbox.chat("sandbox/fail-503", &json!({}));
        line = tail.lines.try_recv().ok();
        line.is_some()
    });
    line.unwrap()
}

#[test]
fn the_command_shows_calls_to_people_and_to_machines() {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    let people = Tail::start(sandbox.admin, &[], &["--route", "sandbox/fail-503", "--outcome", "ok,timeout"]);
    let line = first_line(&sandbox, &people);
    for part in ["  200  ok  ", "  sandbox/fail-503  sandbox  ", " ms  ", "sandbox-steady/steady:ok", "req_"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let machines = Tail::start(sandbox.admin, &[], &["--json"]);
    let line: Value = serde_json::from_str(&first_line(&sandbox, &machines)).unwrap();
    assert_eq!((&line["route.id"], &line["caller.id"]), (&json!("sandbox/fail-503"), &json!("sandbox")));
}

#[test]
fn the_command_sends_the_token_and_never_prints_it() {
    let token = "an-admin-token-of-some-length";
    let variables = [("WEIGHBRIDGE_ADMIN_TOKEN", token)];
    let sandbox = Sandbox::start_with(&Site::new(), &variables, &[]);
    let tail = Tail::start(sandbox.admin, &variables, &[]);
    assert!(first_line(&sandbox, &tail).contains("req_"));
    let without = run(weighbridge().args(["tail", "--admin", &format!("http://{}", sandbox.admin)]));
    assert_eq!((without.code, without.out.as_str()), (Some(2), ""));
    assert_eq!(without.err, "the running proxy refuses: send the admin token as authorization: Bearer\n");
    assert!(!sandbox.log().contains(token));
}

#[test]
fn the_command_says_why_there_is_nothing_to_follow() {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    let at = |address: &str, more: &[&str]| run(weighbridge().args(["tail", "--admin", address]).args(more));
    let admin = format!("http://{}", sandbox.admin);
    for (ended, told) in [
        (at(&admin, &["--route", "nowhere"]), "no route has this name"),
        (at(&admin, &["--outcome", "fine"]), "outcome is one of ok"),
        (at("ftp://127.0.0.1:9", &[]), "must begin with http:// or https://"),
        (at("https://127.0.0.1:9", &[]), "no proxy answers at 127.0.0.1:9"),
        (at("http://127.0.0.1:1", &[]), "no proxy answers at 127.0.0.1:1"),
        (at(&format!("http://{}", sandbox.data), &[]), "refuses"),
    ] {
        assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""), "{ended:?}");
        assert!(ended.err.contains(told) && ended.err.lines().count() == 1, "{told}: {ended:?}");
    }
}

#[test]
fn the_command_ends_at_once_when_interrupted_and_when_nobody_reads() {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    let mut tail = Tail::start(sandbox.admin, &[], &[]);
    first_line(&sandbox, &tail);
    let interrupted = Command::new("kill").args(["-INT", &tail.child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    wait_until(PATIENCE, "its end", || tail.child.try_wait().unwrap().is_some());
    assert!(tail.errors.recv_timeout(PATIENCE).is_err(), "without a word");

    let mut command = weighbridge();
    command.args(["tail", "--admin", &format!("http://{}", sandbox.admin)]).stderr(Stdio::piped());
    let mut piped = command.spawn().unwrap();
    drop(piped.stdout.take());
    let mut status = None;
    wait_until(PATIENCE, "its end", || {
        sandbox.chat("sandbox/steady", &json!({}));
        status = piped.try_wait().unwrap();
        status.is_some()
    });
    let mut told = String::new();
    piped.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert_eq!((status.unwrap().code(), told.as_str()), (Some(0), ""));
}

#[test]
fn the_command_comes_back_to_a_proxy_that_comes_back() {
    // A proxy that is restarted between two calls, which a real one cannot be on a port that is free for sure.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tail = Tail::start(listener.local_addr().unwrap(), &[], &["--json"]);
    for life in 0..3 {
        let mut stream = BufReader::new(listener.accept().unwrap().0);
        let mut asked = String::new();
        stream.read_line(&mut asked).unwrap();
        assert_eq!(asked, "GET /-/tail? HTTP/1.0\r\n");
        let line = format!("{{\"life\":{life}}}");
        write!(stream.get_mut(), "HTTP/1.0 200 OK\r\n\r\n\n{line}\n{{\"half").unwrap();
        assert_eq!(tail.line(), line);
        drop(stream);
        if life > 0 {
            assert!(tail.errors.recv_timeout(PATIENCE).unwrap().starts_with("connected again"));
        }
        assert!(tail.errors.recv_timeout(PATIENCE).unwrap().ends_with("; trying again"));
    }
}

#[test]
fn what_operators_do_is_in_the_log_with_who_and_how_it_ended() {
    let site = Site::new();
    let sandbox = Sandbox::start_with(&site, &[], &["--log", "error"]);
    let version = sandbox.version();
    assert_eq!(sandbox.reload().status, 200);
    site.replace("routes.toml", "version = 1\n[nonsense]\n");
    assert_eq!(sandbox.reload().status, 422);
    Client::to(sandbox.admin).call("POST", "/-/Sk-no-such", &[], "").unwrap();
    drop(Follower::following(sandbox.admin, ""));
    sandbox.admin_get("/metrics");
    wait_until(PATIENCE, "five actions", || actions(&sandbox).len() == 5);
    let told: Vec<_> = actions(&sandbox).iter().map(|line| (line["action"].clone(), line["status"].clone())).collect();
    let wanted = [("reload", 200), ("reload", 422), ("other", 404), ("tail", 200), ("tail", 200)];
    assert_eq!(told, wanted.map(|(action, status)| (json!(action), json!(status))));
    for (line, result) in actions(&sandbox).iter().zip(["done", "refused", "refused", "done", "ended"]) {
        assert_eq!((&line["result"], &line["by"]), (&json!(result), &json!("loopback")), "{line}");
        assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
        assert_eq!(line["config.version"], version.as_str(), "{line}");
        assert!(line["duration_ms"].is_number() && line["timestamp"].is_string(), "{line}");
    }
    assert_eq!(actions(&sandbox)[4]["missed"], 0);
}

#[test]
fn whoever_is_turned_away_is_in_the_log_but_cannot_fill_it() {
    let variables = [("WEIGHBRIDGE_ADMIN_TOKEN", "an-admin-token-of-some-length")];
    let sandbox = Sandbox::start_with(&Site::new(), &variables, &[]);
    let began = Instant::now();
    for _ in 0..50 {
        assert_eq!(sandbox.reload().status, 401);
        assert_eq!(sandbox.admin_get("/status.json").status, 401);
    }
    let seconds = usize::try_from(began.elapsed().as_secs()).unwrap() + 2;
    wait_until(PATIENCE, "a line", || !actions(&sandbox).is_empty());
    let told = actions(&sandbox);
    assert!(told.len() <= seconds, "{told:?}");
    assert_eq!(
        (&told[0]["result"], &told[0]["status"], &told[0]["by"]),
        (&json!("turned_away"), &json!(401), &json!("token"))
    );
}
