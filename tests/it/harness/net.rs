//! The network between the proxy and its providers, with all that can go wrong on it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::{Future, pending};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use weighbridge::sandbox::aggregator::Aggregator;
use weighbridge::sandbox::alipay::Alipay;
use weighbridge::sandbox::serve_connection;
use weighbridge::upstream::dial::{Dial, Io, Origin, TcpDial};

use super::sockets::{Book, trusting};

/// What a connection to a provider leads to.
#[derive(Clone)]
pub enum Link {
    /// The simulator.
    Simulator,
    /// Nobody listens there.
    Refused,
    /// No answer to the connection attempt, ever.
    BlackHole,
    /// A real socket, through the product's own dialling; see [`super::sockets`].
    At(Origin),
    /// A peer made of a few lines of test.
    Scripted(Script),
}

type Script = Arc<dyn Fn(DuplexStream) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A peer that does `act` with every connection.
pub fn peer<F>(act: impl Fn(DuplexStream) -> F + Send + Sync + 'static) -> Link
where
    F: Future<Output = ()> + Send + 'static,
{
    Link::Scripted(Arc::new(move |io| Box::pin(act(io))))
}

/// A peer that reads one request, says `reply` and closes.
pub fn says(reply: impl Into<Vec<u8>>) -> Link {
    let reply: Arc<[u8]> = reply.into().into();
    peer(move |mut io| {
        let reply = Arc::clone(&reply);
        async move {
            read_request(&mut io).await;
            // The proxy may hang up in the middle, which is its right.
            let _ = io.write_all(&reply).await;
        }
    })
}

/// A whole JSON reply as a provider writes it.
pub fn http_reply(status: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}

/// Reads one request with a declared length. Empty if there was none.
pub async fn read_request(io: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return text;
            }
        }
        match io.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return String::new(),
            Ok(_) => {}
        }
    }
}

/// The network between the proxy and its providers.
pub struct Net {
    pub(super) llms: BTreeMap<&'static str, Aggregator>,
    alipay: Alipay,
    plans: Mutex<HashMap<String, (VecDeque<Link>, Link)>>,
    dialled: Mutex<Vec<String>>,
    pipe: usize,
    /// The name service that [`Link::At`] asks.
    pub book: Book,
    tcp: TcpDial,
}

impl Net {
    /// One on which all goes well; its pipes hold `pipe` bytes.
    pub(super) fn new(llms: BTreeMap<&'static str, Aggregator>, alipay: Alipay, pipe: usize) -> Self {
        let book = Book::default();
        let tcp = TcpDial::resolving(trusting(), book.clone());
        Self { llms, alipay, plans: Mutex::default(), dialled: Mutex::default(), pipe, book, tcp }
    }

    /// The next connections to `provider` lead to these, later ones to `then`.
    pub fn script(&self, provider: &str, links: impl IntoIterator<Item = Link>, then: Link) {
        self.plans.lock().unwrap().insert(provider.to_owned(), (links.into_iter().collect(), then));
    }

    /// All connections to `provider` lead there.
    pub fn always(&self, provider: &str, link: Link) {
        self.script(provider, [], link);
    }

    /// How often somebody connected, or tried to.
    pub fn dialled(&self, provider: &str) -> usize {
        self.dialled.lock().unwrap().iter().filter(|host| provider_of(host) == provider).count()
    }

    /// Every host anybody connected to.
    pub fn hosts(&self) -> Vec<String> {
        self.dialled.lock().unwrap().clone()
    }

    fn next(&self, provider: &str) -> Link {
        let mut plans = self.plans.lock().unwrap();
        match plans.get_mut(provider) {
            Some((script, then)) => script.pop_front().unwrap_or_else(|| then.clone()),
            None => Link::Simulator,
        }
    }

    fn simulate(&self, provider: &str, io: DuplexStream) {
        if let Some(llm) = self.llms.get(provider).cloned() {
            tokio::spawn(serve_connection(io, move |request| {
                let llm = llm.clone();
                async move { llm.handle(request).await }
            }));
        } else {
            let alipay = self.alipay.clone();
            tokio::spawn(serve_connection(io, move |request| {
                let alipay = alipay.clone();
                async move { alipay.handle(request).await }
            }));
        }
    }

    async fn connect(&self, origin: &Origin, within: Duration) -> io::Result<Box<dyn Io>> {
        self.dialled.lock().unwrap().push(origin.host.clone());
        let provider = provider_of(&origin.host);
        let (near, far) = duplex(self.pipe);
        match self.next(provider) {
            Link::Simulator => self.simulate(provider, far),
            Link::At(origin) => return self.tcp.dial(&origin, within).await,
            Link::Refused => return Err(io::ErrorKind::ConnectionRefused.into()),
            Link::BlackHole => pending().await,
            Link::Scripted(script) => drop(tokio::spawn(script(far))),
        }
        Ok(Box::new(near))
    }
}

impl Dial for Net {
    fn dial<'a>(
        &'a self,
        origin: &'a Origin,
        within: Duration,
    ) -> Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send + 'a>> {
        Box::pin(self.connect(origin, within))
    }
}

fn provider_of(host: &str) -> &str {
    host.strip_suffix(".test").unwrap_or(host)
}
