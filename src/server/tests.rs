//! Over real sockets, so in real time: only what memory cannot show.

use std::future::pending;
use std::io::{Read, Write};
use std::net::TcpStream;

use futures_util::stream;
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::time::Instant;
use tower::service_fn;

use super::*;
use crate::domain::worker;

type TestBody = UnsyncBoxBody<Bytes, Infallible>;

fn whole(text: String) -> Response<TestBody> {
    Response::new(Full::new(Bytes::from(text)).boxed_unsync())
}

/// `/` says which worker answers, `/hold` never ends its body, `/slow` takes 200 ms, `/panic` is a bug.
async fn answer(worker: usize, request: Request<Incoming>) -> Result<Response<TestBody>, Infallible> {
    assert_eq!(worker::index(), worker);
    Ok(match request.uri().path() {
        "/panic" => panic!("a bug"),
        "/slow" => {
            sleep(Duration::from_millis(200)).await;
            whole("slow".to_owned())
        }
        "/hold" => {
            let held = format!("worker {worker}!");
            let frames = stream::unfold(Some(held), |text| async move {
                let Some(text) = text else { pending().await };
                Some((Ok(Frame::data(Bytes::from(text))), None))
            });
            Response::new(StreamBody::new(frames).boxed_unsync())
        }
        _ => whole(format!("worker {worker}!")),
    })
}

fn start(workers: usize, connections: usize) -> (Server, Arc<Metrics>) {
    let metrics = Metrics::new();
    let config = ServerConfig {
        listener: bind("127.0.0.1:0".parse().unwrap()).unwrap(),
        workers,
        limits: Arc::new(move || ConnectionLimits { connections, ..ConnectionLimits::default() }),
        tls: None,
        metrics: Arc::clone(&metrics),
        shutdown: Shutdown::new(),
    };
    let server = Server::start(config, |worker| service_fn(move |request| answer(worker, request))).unwrap();
    (server, metrics)
}

struct Client(TcpStream);

impl Client {
    fn connect(server: &Server) -> Self {
        let stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        Self(stream)
    }

    fn ask(&mut self, path: &str) {
        self.0.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).unwrap();
    }

    fn read_until(&mut self, text: &str) -> String {
        let mut read = Vec::new();
        let mut buffer = [0; 1024];
        while !String::from_utf8_lossy(&read).contains(text) {
            let length = self.0.read(&mut buffer).unwrap();
            assert_ne!(length, 0, "closed after {:?}", String::from_utf8_lossy(&read));
            read.extend_from_slice(&buffer[..length]);
        }
        String::from_utf8(read).unwrap()
    }

    /// Reads to the end, which must not be a reset.
    fn rest(&mut self) -> String {
        let mut rest = String::new();
        self.0.read_to_string(&mut rest).unwrap();
        rest
    }
}

/// Waits for something that another thread is about to do.
fn soon(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..500 {
        if is_so() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("{what} did not happen");
}

fn sample(metrics: &Metrics, name: &str) -> u64 {
    let text = metrics.render();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

#[test]
fn connections_go_to_the_worker_with_fewest_open_requests() {
    let (server, _) = start(2, 100);
    let mut held = Client::connect(&server);
    held.ask("/hold");
    let busy = held.read_until("!").contains("worker 1!");
    for _ in 0..6 {
        let mut client = Client::connect(&server);
        client.ask("/");
        assert_eq!(client.read_until("!").contains("worker 0!"), busy);
    }
}

#[test]
fn a_connection_beyond_the_limit_is_told_so_and_not_reset() {
    let (server, metrics) = start(1, 2);
    let mut served: Vec<_> = (0..2).map(|_| Client::connect(&server)).collect();
    served.iter_mut().for_each(|client| client.ask("/hold"));
    served.iter_mut().for_each(|client| drop(client.read_until("!")));
    let mut refused = Client::connect(&server);
    refused.ask("/");
    assert!(refused.rest().starts_with("HTTP/1.1 503 "));
    assert_eq!(sample(&metrics, "weighbridge_connections_refused_total{reason=\"limit\"}"), 1);
    assert_eq!(sample(&metrics, "weighbridge_connections_open"), 2);
    drop(served);
    soon("a place", || server.connections() == 0);
    let mut client = Client::connect(&server);
    client.ask("/");
    client.read_until("!");
}

#[test]
fn p6_the_connection_idle_longest_makes_room() {
    let (server, metrics) = start(1, 64);
    let mut clients: Vec<_> = (0..62)
        .map(|_| {
            let mut client = Client::connect(&server);
            client.ask("/");
            client.read_until("!");
            client
        })
        .collect();
    assert_eq!(server.connections(), 62);
    let mut newcomer = Client::connect(&server);
    newcomer.ask("/");
    newcomer.read_until("!");
    assert_eq!(clients[0].rest(), "", "closed in good order");
    assert_eq!(clients[1].rest(), "");
    clients.truncate(62);
    clients[2].ask("/");
    clients[2].read_until("!");
    soon("the eviction", || sample(&metrics, "weighbridge_connections_ended_total{reason=\"evicted\"}") == 2);
}

#[test]
fn row_33_a_panic_costs_one_connection_and_is_counted() {
    let (server, metrics) = start(1, 100);
    let mut client = Client::connect(&server);
    client.ask("/panic");
    soon("the count", || sample(&metrics, "weighbridge_panics_total") == 1);
    soon("the end", || sample(&metrics, "weighbridge_connections_ended_total{reason=\"panicked\"}") == 1);
    soon("the place", || (server.connections(), server.in_flight()) == (0, 0));
    let mut client = Client::connect(&server);
    client.ask("/");
    client.read_until("!");
}

#[tokio::test]
async fn row_42_a_drain_finishes_requests_and_ends_when_they_have() {
    let (server, metrics) = start(2, 100);
    let address = server.address();
    let (mut idle, mut busy) = (Client::connect(&server), Client::connect(&server));
    idle.ask("/");
    idle.read_until("!");
    busy.ask("/slow");
    soon("the request", || server.in_flight() == 1);
    let started = Instant::now();
    let report = server.drain(Duration::ZERO, Duration::from_secs(30)).await;
    assert_eq!(report, DrainReport { connections: 2, in_flight: 1, ended: 0, aborted: 0 });
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert_eq!(idle.rest(), "");
    assert!(busy.rest().ends_with("slow"));
    assert!(TcpStream::connect(address).is_err(), "the listener is closed");
    assert_eq!(sample(&metrics, "weighbridge_connections_ended_total{reason=\"drained\"}"), 2);
    assert_eq!(sample(&metrics, "weighbridge_connections_open"), 0);
}

#[tokio::test]
async fn row_42_a_drain_tells_the_rest_to_end_and_then_drops_it() {
    let (server, metrics) = start(1, 100);
    let ending = server.shutdown.signal().ending();
    let mut held = Client::connect(&server);
    held.ask("/hold");
    held.read_until("!");
    let report = server.drain(Duration::ZERO, Duration::from_millis(50)).await;
    assert_eq!(report, DrainReport { connections: 1, in_flight: 1, ended: 1, aborted: 1 });
    assert!(*ending.borrow());
    assert!(!held.rest().ends_with("0\r\n\r\n"), "a cut answer must not look complete");
    assert_eq!(sample(&metrics, "weighbridge_connections_ended_total{reason=\"aborted\"}"), 1);
}

#[tokio::test]
async fn row_42_clients_in_the_accept_queue_are_answered_when_a_drain_begins() {
    let (server, _) = start(1, 100);
    let mut clients: Vec<_> = (0..50).map(|_| Client::connect(&server)).collect();
    clients.iter_mut().for_each(|client| client.ask("/"));
    server.drain(Duration::ZERO, Duration::from_secs(30)).await;
    assert!(clients.iter_mut().all(|client| client.rest().ends_with('!')));
}
