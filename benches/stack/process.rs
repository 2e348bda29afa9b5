//! The processes under test: started on their core, ready before they are used, gone when dropped.

use std::fmt;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

const READY_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// What providers are shown.
pub const PROVIDER_KEY: &str = "null-upstream-key-0123456789abcdef0123456789";
const CALLER_KEY: &str = "wb-bench-0123456789abcdef0123456789abcdef";

/// Which core belongs to whom, if cores can be given away at all.
pub struct Pinned(bool);

impl Pinned {
    /// Looks for taskset and a second core.
    pub fn detect() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self(cores > 1 && on_path("taskset"))
    }

    /// Puts the load generator beside the upstream.
    pub fn pin_self(&self) {
        if self.0 {
            let pid = std::process::id().to_string();
            let pinned = Command::new("taskset").args(["-cp", "1", &pid]).stdout(Stdio::null()).status();
            assert!(pinned.is_ok_and(|status| status.success()), "taskset works");
        }
    }

    /// No core belongs to anybody.
    pub fn nowhere() -> Self {
        Self(false)
    }

    /// Gives the load generator every core again.
    pub fn release_self(&self) {
        if self.0 {
            let pid = std::process::id().to_string();
            let free = Command::new("taskset").args(["-cp", "0,1", &pid]).stdout(Stdio::null()).status();
            assert!(free.is_ok_and(|status| status.success()), "taskset works");
        }
    }

    fn command(&self, core: &str, words: &[String]) -> Command {
        let mut all: Vec<String> = if self.0 { vec!["taskset".into(), "-c".into(), core.into()] } else { Vec::new() };
        all.extend_from_slice(words);
        let mut command = Command::new(&all[0]);
        command.args(&all[1..]).stdin(Stdio::null());
        command
    }
}

impl fmt::Display for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "proxy alone on core 0" } else { "not pinned: no taskset or a single core" })
    }
}

/// A process that ends with its owner.
struct Running {
    child: Child,
    address: SocketAddr,
}

impl Running {
    /// Starts it and waits until its address accepts connections.
    fn start(mut command: Command, address: SocketAddr, log: &Path) -> Self {
        let output = fs::File::create(log).unwrap();
        command.stdout(output.try_clone().unwrap()).stderr(output);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut running = Self { child, address };
        let since = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = running.child.try_wait().unwrap();
            let waiting = ended.is_none() && since.elapsed() < READY_WITHIN;
            assert!(waiting, "{command:?} is not ready ({ended:?}):\n{}", fs::read_to_string(log).unwrap_or_default());
            std::thread::sleep(Duration::from_millis(10));
        }
        running
    }

    /// Asks it to stop, so that it can write what it has to, and waits.
    fn stop(&mut self) {
        let pid = self.child.id().to_string();
        drop(Command::new("kill").args(["-TERM", &pid]).status());
        let since = Instant::now();
        while since.elapsed() < STOP_WITHIN {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The null upstream.
pub struct Upstream {
    running: Running,
    _folder: TempDir,
}

impl Upstream {
    /// Starts it beside the load generator.
    pub fn start(pinned: &Pinned) -> Self {
        let folder = TempDir::new().unwrap();
        let address = free_address();
        let command = pinned.command("1", &[this_program(), "null".into(), address.to_string()]);
        Self { running: Running::start(command, address, &folder.path().join("log")), _folder: folder }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.running.address
    }
}

/// What can stand between the load and the upstream.
pub enum Kind {
    /// The yardstick.
    Bare,
    /// The product.
    Weighbridge,
    /// For those who know its numbers.
    Nginx,
}

impl Kind {
    /// All that is installed here.
    pub fn available() -> Vec<Self> {
        let mut kinds = vec![Self::Bare, Self::Weighbridge];
        if on_path("nginx") {
            kinds.push(Self::Nginx);
        }
        kinds
    }

    /// As shown and as chosen with `--only`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Weighbridge => "weighbridge",
            Self::Nginx => "nginx",
        }
    }

    fn words(&self, listen: SocketAddr, upstream: SocketAddr, folder: &TempDir) -> Vec<String> {
        let inside = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        match self {
            Self::Bare => vec![this_program(), "bare".into(), listen.to_string(), upstream.to_string()],
            Self::Weighbridge => {
                write_config(folder, upstream);
                product(listen, folder)
            }
            Self::Nginx => {
                fs::write(inside("nginx.conf"), nginx_config(listen, upstream, &inside(""))).unwrap();
                vec!["nginx".into(), "-p".into(), inside(""), "-c".into(), inside("nginx.conf")]
            }
        }
    }
}

/// The product with the configuration in a folder.
fn product(listen: SocketAddr, folder: &TempDir) -> Vec<String> {
    let inside = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let admin = free_address().to_string();
    // Another build of it, if one is named: an installed one, or an older one. `cargo bench` knows its own; a bench built
    // with the release has it beside itself.
    let beside = || Some(std::env::current_exe().ok()?.with_file_name("weighbridge").to_string_lossy().into_owned());
    let named = std::env::var("WEIGHBRIDGE_BENCH_PROGRAM").ok();
    let built = || option_env!("CARGO_BIN_EXE_weighbridge").map(str::to_owned).or_else(beside);
    let program = named.or_else(built).expect("the program beside this one");
    let mut words = vec![program, "serve".into()];
    words.extend(["--routes".into(), inside("routes.toml"), "--providers".into(), inside("providers")]);
    words.extend(["--log-format".into(), "json".into()]);
    words.extend(["--listen".into(), listen.to_string(), "--admin-listen".into(), admin]);
    words
}

/// A proxy in front of the upstream.
pub struct Proxy {
    running: Running,
    _folders: [TempDir; 2],
}

impl Proxy {
    /// Starts it on its own core, behind `prefix` (a tool that runs programs), and waits until it accepts.
    pub fn start(kind: &Kind, upstream: &Upstream, pinned: &Pinned, prefix: &[String]) -> Self {
        let folder = TempDir::new().unwrap();
        let listen = free_address();
        let words = [prefix, &kind.words(listen, upstream.address(), &folder)].concat();
        Self::run(pinned, &words, listen, folder)
    }

    /// Starts the product with a configuration of its own: the text of its routes and of its one provider.
    pub fn configured(pinned: &Pinned, routes: &str, provider: &str) -> Self {
        Self::configured_with(pinned, routes, &[("only", provider)])
    }

    /// As [`Proxy::configured`], with several providers by the names of their files.
    pub fn configured_with(pinned: &Pinned, routes: &str, providers: &[(&str, &str)]) -> Self {
        let (folder, listen) = (TempDir::new().unwrap(), free_address());
        fs::create_dir(folder.path().join("providers")).unwrap();
        for (name, provider) in providers {
            fs::write(folder.path().join(format!("providers/{name}.toml")), provider).unwrap();
        }
        let digest = Sha256::digest(CALLER_KEY).iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        fs::write(folder.path().join("routes.toml"), routes.replace("KEY_DIGEST", &digest)).unwrap();
        Self::run(pinned, &product(listen, &folder), listen, folder)
    }

    fn run(pinned: &Pinned, words: &[String], listen: SocketAddr, folder: TempDir) -> Self {
        let mut command = pinned.command("0", words);
        command.env("WEIGHBRIDGE_BENCH_KEY", PROVIDER_KEY);
        command.env("WEIGHBRIDGE_BENCH_SECRET", "4f".repeat(32));
        command.env("WEIGHBRIDGE_DATA_DIR", folder.path().join("data"));
        // Not beside the configuration: its folder is watched, and each line of the log would be an event.
        let log = TempDir::new().unwrap();
        let running = Running::start(command, listen, &log.path().join("log"));
        Self { running, _folders: [folder, log] }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.running.address
    }

    /// The caller's key that it accepts.
    #[expect(clippy::unused_self, reason = "the key belongs to the proxy, though all proxies have the same")]
    pub fn key(&self) -> &'static str {
        CALLER_KEY
    }

    /// Processor time so far, user and system, of all its threads and its children.
    pub fn cpu(&self) -> Duration {
        family(self.running.child.id()).into_iter().map(cpu_of).sum()
    }

    /// How long its threads were ready to run so far and had no core: what others on this machine have taken.
    pub fn queued(&self) -> Duration {
        family(self.running.child.id()).into_iter().map(queued).sum()
    }

    /// Memory in use now.
    pub fn resident_mib(&self) -> f64 {
        let pages = |pid| {
            let text = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
            text.split_whitespace().nth(1).and_then(|pages| pages.parse::<f64>().ok()).unwrap_or(0.0)
        };
        family(self.running.child.id()).into_iter().map(pages).sum::<f64>() * 4096.0 / f64::from(1 << 20)
    }
}

/// A process and its direct children (nginx works in one).
fn family(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    std::iter::once(pid).chain(text.split_whitespace().filter_map(|child| child.parse().ok())).collect()
}

/// By thread in nanoseconds where the kernel counts them, else by process in ticks of 10 ms.
fn cpu_of(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let nanos: u64 = threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok())
        .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .sum();
    if nanos > 0 {
        return Duration::from_nanos(nanos);
    }
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = text.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// How long all threads of a process have waited for a core; nothing where the kernel does not count it.
pub fn queued(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let waited = threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok())
        .filter_map(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    Duration::from_nanos(waited.sum())
}

fn write_config(folder: &TempDir, upstream: SocketAddr) {
    let digest = Sha256::digest(CALLER_KEY).iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    let routes = format!(
        r#"version = 1

[[caller]]
id = "bench"
tenant = "bench"
key_digest = "sha256:{digest}"
allow = ["summary"]

[model.summary]
candidates = ["null/model-1"]
timeouts = {{ total = "60s", first_content = "10s", idle = "10s" }}

[limits]
connections = 20_000
in_flight = 20_000
"#
    );
    let provider = format!(
        r#"id = "null"
protocol = "openai"
base_url = "http://{upstream}/v1"
source = {{ url = "https://example.org/", checked = "2026-11-22" }}
auth = {{ kind = "bearer", secret_env = "WEIGHBRIDGE_BENCH_KEY" }}
operations = ["chat.completions"]
stream_usage = "never"
limits = {{ in_flight = 20_000 }}
allow_private = true

[[model]]
id = "model-1"
name = "model-1"
price = {{ input_per_million_tokens = "0.30 USD", output_per_million_tokens = "1.20 USD", source = "https://example.org/", checked = "2026-11-22" }}
"#
    );
    fs::create_dir(folder.path().join("providers")).unwrap();
    fs::write(folder.path().join("providers/null.toml"), provider).unwrap();
    fs::write(folder.path().join("routes.toml"), routes).unwrap();
}

fn nginx_config(listen: SocketAddr, upstream: SocketAddr, folder: &str) -> String {
    format!(
        "daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
worker_rlimit_nofile 20000;
events {{ worker_connections 16384; }}
http {{
  access_log {folder}/access.log;
  client_max_body_size 32m; client_body_buffer_size 2m;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_requests 1000000000;
  upstream up {{ server {upstream}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen {listen};
    location / {{ proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ''; proxy_buffering off; }}
  }}
}}
"
    )
}

/// An address nobody listens on at the moment.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap()
}

fn this_program() -> String {
    std::env::current_exe().unwrap().to_string_lossy().into_owned()
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
