//! The built program as others see it: a process with files, signals, two ports and two streams of text.
//!
//! The client here is deliberately primitive: it shows what is on the wire and hides no retry.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::machine::Stopwatch;

/// Longest wait for anything that a test does not time itself: far more than it takes on a machine that others use too.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The program without any variable of whoever runs the tests.
pub fn weighbridge() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weighbridge"));
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a command that ends by itself.
pub fn run(command: &mut Command) -> Ended {
    left_by(command.output().unwrap())
}

/// What a process left behind.
pub fn left_by(Output { status, stdout, stderr }: Output) -> Ended {
    Ended { code: status.code(), out: String::from_utf8(stdout).unwrap(), err: String::from_utf8(stderr).unwrap() }
}

/// What a command left behind.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// The repository's folder.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Polls until `holds`, and tells how long it took.
pub fn wait_until(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "waited {limit:?} for {what}");
        thread::sleep(Duration::from_millis(15));
    }
    start.elapsed()
}

/// As [`wait_until`], with a limit of the time that the machine left to this process and to the thread that asks it.
pub fn wait_of_its_own(pid: u32, limit: Duration, what: &str, holds: impl FnMut() -> bool) -> Duration {
    let watch = Stopwatch::of(pid);
    let took = wait_until(PATIENCE, what, holds);
    assert!(watch.elapsed() < limit, "{what} took {took:?}, {:?} of it without a core", watch.withheld());
    took
}

/// A folder with copies of the repository's `routes.toml` and provider files.
pub struct Site(TempDir);

impl Site {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("providers")).unwrap();
        let site = Self(folder);
        fs::copy(repository().join("routes.toml"), site.path("routes.toml")).unwrap();
        for entry in fs::read_dir(repository().join("providers")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                let name = path.file_name().unwrap();
                fs::copy(&path, site.path("providers").join(name)).unwrap();
            }
        }
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Replaces a file as careful writers do.
    pub fn replace(&self, name: &str, text: &str) {
        let beside = self.path("new.tmp");
        fs::write(&beside, text).unwrap();
        fs::rename(beside, self.path(name)).unwrap();
    }
}

/// The repository's `routes.toml` with a further route of this name, so that a reload can be told from its effect.
pub fn routes_with(name: &str) -> String {
    let text = fs::read_to_string(repository().join("routes.toml")).unwrap();
    format!("{text}\n[model.{name}]\ncandidates = [\"tokenmix/deepseek-chat\"]\n")
}

/// A running `weighbridge sandbox`; killed when dropped.
pub struct Sandbox {
    child: Child,
    pub data: SocketAddr,
    pub admin: SocketAddr,
    pub key: String,
    /// All it says of itself at the start.
    pub told: Value,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Sandbox {
    pub fn start(site: &Site, arguments: &[&str]) -> Self {
        Self::start_with(site, &[], arguments)
    }

    pub fn start_with(site: &Site, variables: &[(&str, &str)], arguments: &[&str]) -> Self {
        let mut command = weighbridge();
        command.envs(variables.iter().copied());
        Self::start_by(command, site, arguments)
    }

    /// Starts by this command, which ends up being the program.
    pub fn start_by(mut command: Command, site: &Site, arguments: &[&str]) -> Self {
        command.current_dir(site.0.path()).args(["sandbox", "--json", "--log-format", "json"]);
        command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]).args(arguments);
        let mut child = command.spawn().unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let reader = Some(collect(child.stderr.take().unwrap(), Arc::clone(&log)));
        let told: Value = serde_json::from_str(&first).unwrap_or_else(|_| {
            let _ = child.wait();
            thread::sleep(Duration::from_millis(50));
            panic!("{first:?} {}", log.lock().unwrap().clone())
        });
        let address = |key: &str| told[key].as_str().unwrap().strip_prefix("http://").unwrap().parse().unwrap();
        let key = told["api_key"].as_str().unwrap().to_owned();
        Self { data: address("data"), admin: address("admin"), key, told, child, log, reader }
    }

    /// Sends a signal by its short name.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("sh").args(["-c", "kill -$0 $1", name, &pid]).status().unwrap().success());
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end and gives the status with the whole log.
    pub fn ended(mut self, limit: Duration) -> (ExitStatus, String) {
        let mut status = None;
        wait_of_its_own(self.pid(), limit, "the process's end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        self.reader.take().unwrap().join().unwrap();
        (status.unwrap(), self.log())
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// CPU time used so far, in ticks of 10 ms; `None` where there is no `/proc`.
    pub fn ticks(&self) -> Option<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    }

    pub fn admin_get(&self, path: &str) -> Answer {
        Client::to(self.admin).call("GET", path, &[], "").unwrap()
    }

    pub fn status(&self) -> Value {
        self.admin_get("/status.json").json()
    }

    /// The version in force.
    pub fn version(&self) -> String {
        self.status()["config_hash"].as_str().unwrap().to_owned()
    }

    pub fn has_route(&self, name: &str) -> bool {
        self.status()["routes"].as_array().unwrap().iter().any(|route| route["id"] == name)
    }

    /// A sample of `/metrics`, by its whole name with labels; 0 if there is none.
    pub fn metric(&self, sample: &str) -> f64 {
        let text = self.admin_get("/metrics").body;
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// `POST /-/reload`.
    pub fn reload(&self) -> Answer {
        Client::to(self.admin).call("POST", "/-/reload", &[], "").unwrap()
    }

    pub fn client(&self) -> Client {
        Client::to(self.data)
    }

    /// One whole answer of a model, never from a cache. `more` goes into the body.
    pub fn chat(&self, model: &str, more: &Value) -> Answer {
        self.client().chat(&self.key, model, more).unwrap()
    }

    /// Opens a stream of about `words` events, 20 ms each.
    pub fn stream(&self, model: &str, words: usize) -> Stream {
        self.client().stream(&self.key, model, words).unwrap()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Collects a pipe; a pipe that nobody reads would fill up.
pub fn collect(pipe: impl Read + Send + 'static, into: Arc<Mutex<String>>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut lines = BufReader::new(pipe);
        let mut line = String::new();
        while lines.read_line(&mut line).is_ok_and(|length| length > 0) {
            into.lock().unwrap().push_str(&line);
            line.clear();
        }
    })
}

fn chat_body(model: &str, more: &Value) -> String {
    let mut body = json!({ "model": model, "messages": [{ "role": "user", "content": "hi" }] });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string()
}

fn chat_headers(key: &str) -> [(String, String); 2] {
    [("authorization".to_owned(), format!("Bearer {key}")), ("wb-cache".to_owned(), "no-store".to_owned())]
}

/// An HTTP answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// One connection that is kept for as long as the server lets it be; it is opened at the first request and never again.
pub struct Client {
    address: SocketAddr,
    connection: Option<BufReader<TcpStream>>,
}

impl Client {
    pub fn to(address: SocketAddr) -> Self {
        Self { address, connection: None }
    }

    pub fn chat(&mut self, key: &str, model: &str, more: &Value) -> io::Result<Answer> {
        self.call("POST", "/v1/chat/completions", &chat_headers(key), &chat_body(model, more))
    }

    /// Opens a stream of about `words` events, 20 ms each.
    pub fn stream(mut self, key: &str, model: &str, words: usize) -> io::Result<Stream> {
        // The simulated provider calls the first tool with the plainest arguments the schema accepts: this many words.
        let arguments = json!({ "enum": [vec!["word"; words].join(" ")] });
        let tool = json!({ "type": "function", "function": { "name": "say", "parameters": arguments } });
        let body = chat_body(model, &json!({ "stream": true, "tools": [tool] }));
        self.send("POST", "/v1/chat/completions", &chat_headers(key), &body)?;
        let head = self.head()?;
        Ok(Stream { head, client: self })
    }

    /// A request and its whole answer.
    pub fn call(&mut self, method: &str, path: &str, headers: &[(String, String)], body: &str) -> io::Result<Answer> {
        self.send(method, path, headers, body)?;
        let mut answer = self.head()?;
        answer.body = self.body(&answer)?;
        Ok(answer)
    }

    /// A HEAD request; its answer has no body, whatever its length says.
    pub fn head_of(&mut self, path: &str) -> Answer {
        self.send("HEAD", path, &[], "").unwrap();
        self.head().unwrap()
    }

    fn send(&mut self, method: &str, path: &str, headers: &[(String, String)], body: &str) -> io::Result<()> {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| name == "host") {
            head.push_str(&format!("host: {}\r\n", self.address));
        }
        if !body.is_empty() {
            head.push_str(&format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()));
        }
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        self.open()?.get_mut().write_all(format!("{head}\r\n{body}").as_bytes())
    }

    fn open(&mut self) -> io::Result<&mut BufReader<TcpStream>> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_nodelay(true)?;
                BufReader::new(stream)
            }
        };
        Ok(self.connection.insert(connection))
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.open()?.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    fn head(&mut self) -> io::Result<Answer> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.push((name.to_owned(), value.to_owned()));
        }
        Ok(Answer { status: status.ok_or(io::ErrorKind::InvalidData)?, headers, body: String::new() })
    }

    fn body(&mut self, head: &Answer) -> io::Result<String> {
        let mut body = Vec::new();
        if let Some(length) = head.header("content-length") {
            body.resize(length.parse().map_err(|_| io::ErrorKind::InvalidData)?, 0);
            self.open()?.read_exact(&mut body)?;
        } else if head.header("transfer-encoding") == Some("chunked") {
            self.chunks(&mut body)?;
        }
        if head.header("connection") == Some("close") {
            self.connection = None;
        }
        String::from_utf8(body).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    fn chunks(&mut self, body: &mut Vec<u8>) -> io::Result<()> {
        loop {
            let length = usize::from_str_radix(&self.line()?, 16).map_err(|_| io::ErrorKind::InvalidData)?;
            let mut chunk = vec![0; length];
            self.open()?.read_exact(&mut chunk)?;
            body.extend_from_slice(&chunk);
            self.line()?;
            if length == 0 {
                return Ok(());
            }
        }
    }
}

/// A stream past its head.
pub struct Stream {
    pub head: Answer,
    client: Client,
}

impl Stream {
    /// The rest of it; an error if it was cut.
    pub fn rest(mut self) -> io::Result<String> {
        self.client.body(&self.head)
    }
}

/// Steady requests over kept connections, until told to stop.
pub struct Traffic {
    stop: Arc<std::sync::atomic::AtomicBool>,
    threads: Vec<JoinHandle<Vec<io::Result<Answer>>>>,
}

impl Traffic {
    /// `connections` clients, each with a request every 50 ms or so. A client whose connection the server closed in good
    /// order opens another; one that finds nobody listening ends.
    pub fn start(sandbox: &Sandbox, connections: usize) -> Self {
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let client = |_| {
            let (mut client, key, stop) = (sandbox.client(), sandbox.key.clone(), Arc::clone(&stop));
            thread::spawn(move || {
                let mut answers = Vec::new();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let answer = client.chat(&key, "sandbox/steady", &json!({}));
                    if answer.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
                        break;
                    }
                    answers.push(answer);
                    thread::sleep(Duration::from_millis(50));
                }
                answers
            })
        };
        Self { threads: (0..connections).map(client).collect(), stop }
    }

    /// Every answer there was; fails if a single request did.
    pub fn all_answered(self) -> Vec<Answer> {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let all: Vec<_> = self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert!(!all.is_empty());
        all.into_iter()
            .map(|answer| {
                let answer = answer.unwrap();
                assert_eq!(answer.status, 200, "{answer:?}");
                answer
            })
            .collect()
    }
}
