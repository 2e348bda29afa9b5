//! One provider, step by step as a call goes: name, connection, certificate, key, clock. The first step that fails ends
//! it; all of them together have five seconds.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, DATE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, Method, Request, StatusCode};
use rustls::ClientConfig;
use time::PrimitiveDateTime;
use time::macros::format_description;
use tokio::time::{Instant, timeout_at};

use super::ask::{self, Answer};
use super::certificate::{self, Shown};
use super::report::Finding;
use super::{PATIENCE, chain};
use crate::config::is_placeholder;
use crate::config::table::{Auth, Protocol, Provider};
use crate::config::tls::HttpVersion;
use crate::domain::clock;
use crate::domain::operation::Operation;
use crate::sign::di::{self, ReceivedResponse, RequestParts};
use crate::sign::keyring::KeyState;
use crate::upstream::dial::Io;
use crate::upstream::live::credential;
use crate::upstream::names::{Resolve, System};
use crate::upstream::pool::multiplex;
use crate::upstream::skew::{Measured, Skew};
use crate::wire::alipay::di as wire;

/// From here on a certificate should be renewed.
const SOON_DAYS: u64 = 21;
/// From here on somebody should look, and from there on signatures are refused.
const SKEW_TO_LOOK_AT_MS: i64 = 30_000;
/// A `Date` header has whole seconds.
const DATE_DOUBT: Duration = Duration::from_secs(1);

/// A probe under way.
struct Probe<'p> {
    provider: &'p Provider,
    tls: Arc<ClientConfig>,
    shown: Shown,
    ends: Instant,
    findings: Vec<Finding>,
}

/// Why there is nothing more to probe; it has been told.
struct Ended;

/// Probes one provider; what was found, in order.
pub(super) async fn probe(provider: &Provider) -> Vec<Finding> {
    let name = |check: &str| format!("{} {check}", provider.id);
    let mut findings = credentials(provider);
    match certificate::client(provider.tls.as_deref()) {
        Ok((tls, shown)) => {
            let mut probe = Probe { provider, tls, shown, ends: Instant::now() + PATIENCE, findings };
            let _ = probe.run().await;
            probe.findings
        }
        Err(error) => {
            let said = format!("no trust store: {}", chain(&error));
            findings.push(Finding::new(name("certificate"), said).fail("install ca-certificates"));
            findings
        }
    }
}

/// Whether each secret is there, and how long it is; which of several signs.
fn credentials(provider: &Provider) -> Vec<Finding> {
    let check = format!("{} credential", provider.id);
    let told = |what: String, secret: &crate::domain::secret::Secret| {
        if is_placeholder(secret) {
            return Finding::new(check.clone(), format!("{what} is missing"))
                .fail("set it where the provider file says");
        }
        Finding::new(check.clone(), format!("{what} is there, {} bytes", secret.expose().len())).ok()
    };
    match &provider.auth {
        Auth::None => vec![Finding::new(check, "none is needed").ok()],
        Auth::Bearer { secret } | Auth::Header { secret, .. } => vec![told("the key".to_owned(), secret)],
        Auth::DiHmac { keys } => {
            let role = |key: &crate::sign::keyring::SigningKey| match key.state {
                KeyState::Active if key.id == keys.signer().id => "signs",
                state => state.label(),
            };
            keys.keys().iter().map(|key| told(format!("signing key {} ({})", key.id, role(key)), &key.secret)).collect()
        }
    }
}

impl Probe<'_> {
    fn finding(&self, check: &str, said: impl Into<String>) -> Finding {
        Finding::new(format!("{} {check}", self.provider.id), said)
    }

    /// The step's result; an error or a late one is told and ends the probe.
    async fn step<T>(
        &mut self,
        check: &str,
        advice: &str,
        work: impl Future<Output = Result<T, String>>,
    ) -> Result<(T, Duration), Ended> {
        let started = Instant::now();
        let said = match timeout_at(self.ends, work).await {
            Ok(Ok(done)) => return Ok((done, started.elapsed())),
            Ok(Err(said)) => said,
            Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        let finding = self.finding(check, said).fail(advice);
        self.findings.push(finding);
        Err(Ended)
    }

    fn push(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    async fn run(&mut self) -> Result<(), Ended> {
        self.name().await?;
        let io = self.connection().await?;
        let missing = self.provider.auth.secrets().any(is_placeholder);
        if missing {
            return Ok(());
        }
        let (answer, nonce) = match self.provider.protocol {
            Protocol::OpenAi => (self.models(io).await?, None),
            Protocol::DiHmac => {
                let (answer, nonce) = self.token(io).await?;
                (answer, Some(nonce))
            }
        };
        let clock = self.clock(&answer, nonce.as_deref());
        self.push(clock);
        Ok(())
    }

    async fn name(&mut self) -> Result<(), Ended> {
        let host = self.provider.base_url.host.clone();
        if host.parse::<IpAddr>().is_ok() {
            return Ok(());
        }
        let advice = "check base_url and this machine's name service";
        let asked = async {
            let addresses = System.resolve(&host).await.map_err(|error| format!("{host}: {}", chain(&error)))?;
            if addresses.is_empty() { Err(format!("{host} has no address")) } else { Ok(addresses.len()) }
        };
        let (addresses, took) = self.step("name", advice, asked).await?;
        let finding = self.finding("name", format!("{host} has {addresses} addresses, {} ms", took.as_millis())).ok();
        self.push(finding);
        Ok(())
    }

    async fn connection(&mut self) -> Result<Box<dyn Io>, Ended> {
        let (url, private, tls) = (&self.provider.base_url, self.provider.allow_private, Arc::clone(&self.tls));
        let advice = "check base_url, firewalls and, for an address of your own network, allow_private";
        let (io, took) = self.step("connection", advice, ask::connect(url, private, &tls)).await?;
        let finding = self.finding("connection", format!("to {} in {} ms", url.authority(), took.as_millis())).ok();
        self.push(finding);
        let advice = "check base_url, this machine's clock and its trusted roots";
        let secured = self.step("certificate", advice, ask::secure(url, self.provider.http, io, &tls)).await;
        if url.tls {
            let facts = self.shown.facts();
            match (&secured, facts) {
                (Ok(_), Some((own, first_end))) => {
                    let finding =
                        judged_end(self.finding("certificate", ""), &own.issuer, first_end, clock::unix_seconds());
                    self.push(finding);
                }
                (Err(_), Some((own, _))) => {
                    let until = clock::rfc3339(own.not_after.saturating_mul(1000));
                    if let Some(last) = self.findings.last_mut() {
                        last.said = format!("{} (issued by {}, until {until})", last.said, own.issuer);
                    }
                }
                (_, None) => {}
            }
        } else {
            let finding = self.finding("certificate", "none: the address is http");
            // On this machine nobody listens in.
            let own = url.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
            self.push(if own { finding.ok() } else { finding.warn("use https unless nobody else can listen in") });
        }
        Ok(secured?.0)
    }

    /// The list of models: with the key, and without it, to know whether the key made a difference.
    async fn models(&mut self, io: Box<dyn Io>) -> Result<Answer, Ended> {
        let provider = self.provider;
        let path = provider.paths.get(&Operation::ModelsList).cloned();
        let path = path.unwrap_or_else(|| format!("{}/models", provider.base_url.path));
        let asked = ask::exchange(
            provider.http,
            io,
            request(provider, Method::GET, &path, own_headers(provider, &provider.auth), Bytes::new()),
        );
        let (answer, took) = self.step("key", "try again, or look at the provider's status page", asked).await?;
        let told = format!("GET {path} answers {} in {} ms", answer.status.as_u16(), took.as_millis());
        let finding = self.finding("key", told);
        let finding = if answer.status == StatusCode::OK && !matches!(provider.auth, Auth::None) {
            let anybody = timeout_at(self.ends, self.without_key(&path)).await.ok().flatten();
            let open = anybody.is_some_and(|status| status == StatusCode::OK);
            let said = if open { ", to anybody: whether the key is good was not seen" } else { ": the key is good" };
            Finding { said: finding.said.clone() + said, ..finding }
        } else {
            judged_key(finding, answer.status)
        };
        self.push(finding);
        Ok(answer)
    }

    async fn without_key(&self, path: &str) -> Option<StatusCode> {
        let provider = self.provider;
        let io = ask::connect(&provider.base_url, provider.allow_private, &self.tls).await.ok()?;
        let io = ask::secure(&provider.base_url, provider.http, io, &self.tls).await.ok()?;
        let request = request(provider, Method::GET, path, own_headers(provider, &Auth::None), Bytes::new());
        ask::exchange(provider.http, io, request).await.ok().map(|answer| answer.status)
    }

    /// An access token: proves the key and decides nothing.
    async fn token(&mut self, io: Box<dyn Io>) -> Result<(Answer, String), Ended> {
        let path = format!("{}/oauth2/token", self.provider.base_url.path);
        let provider = self.provider;
        let signed = signed(provider, &path, wire::token_request());
        let asked = async {
            let (request, nonce) = signed?;
            Ok((ask::exchange(provider.http, io, request).await?, nonce))
        };
        let advice =
            "check the key id, the secret and its encoding; weighbridge doctor --string-to-sign shows what is signed";
        let ((answer, nonce), took) = self.step("key", advice, asked).await?;
        let said = format!("POST {path} answers {} in {} ms", answer.status.as_u16(), took.as_millis());
        let finding = self.finding("key", said);
        let token = answer.body.as_deref().is_some_and(|body| wire::decode_token(body).is_ok());
        let finding = match answer.status {
            StatusCode::OK if token => Finding { said: finding.said.clone() + ": the signing key is good", ..finding },
            StatusCode::OK => finding.fail("that is no token: check base_url"),
            _ => {
                // The provider's own code is one of a few words, never a value of ours.
                let code = answer.body.as_deref().and_then(wire::decode_error);
                let word = |code: &String| {
                    code.len() <= 64 && code.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
                };
                let code = code.filter(word).map(|code| format!(", {code}")).unwrap_or_default();
                Finding { said: finding.said.clone() + &code, ..finding }.fail(advice)
            }
        };
        self.push(finding);
        Ok((answer, nonce))
    }

    /// By the signature's time where the answer is signed, else by its date.
    fn clock(&self, answer: &Answer, nonce: Option<&str>) -> Finding {
        let Some((their_ms, doubt)) = their_time(self.provider, answer, nonce) else {
            return self.finding("clock", "not told by its answer").ok();
        };
        let skew = Skew::default();
        // A `Date` is that much too early at most, so its middle is taken.
        let _ = skew.observe(their_ms, answer.here_ms, answer.round_trip + doubt);
        let Some(Measured { skew_ms, doubt_ms }) = skew.measured() else {
            return self.finding("clock", "not told by its answer").ok();
        };
        let signs = matches!(self.provider.auth, Auth::DiHmac { .. });
        judged_skew(self.finding("clock", ""), skew_ms, doubt_ms, signs)
    }
}

fn judged_end(finding: Finding, issuer: &str, end: u64, now: u64) -> Finding {
    let days = end.saturating_sub(now) / 86_400;
    let finding = Finding { said: format!("good, issued by {issuer}, {days} days left"), ..finding };
    if days >= SOON_DAYS { finding.ok() } else { finding.warn("ask the provider to renew it in time") }
}

fn judged_key(finding: Finding, status: StatusCode) -> Finding {
    match status.as_u16() {
        200..=299 => finding.ok(),
        401 | 403 => finding.fail("the provider refuses the key: check it, and that its account is in order"),
        404 | 405 => finding.warn("no list of models there, so the key was not checked; check base_url"),
        429 => finding.warn("the provider wants fewer requests; try again later"),
        500.. => finding.warn("the provider has trouble; try again later"),
        _ => finding.warn("not what a list of models answers; check base_url"),
    }
}

fn judged_skew(finding: Finding, skew_ms: i64, doubt_ms: i64, signs: bool) -> Finding {
    let side = if skew_ms < 0 { "behind" } else { "ahead of" };
    let said = format!("{} ms {side} ours, give or take {doubt_ms} ms", skew_ms.abs());
    let finding = Finding { said, ..finding };
    let at_least = skew_ms.abs() - doubt_ms;
    let window = i64::try_from(di::WINDOW_MS).unwrap_or(i64::MAX);
    if signs && at_least > window {
        return finding.fail("signatures are refused beyond 300 s: set this machine's clock");
    }
    if at_least > SKEW_TO_LOOK_AT_MS {
        finding.warn("compare this machine's clock with a time server")
    } else {
        finding.ok()
    }
}

fn their_time(provider: &Provider, answer: &Answer, nonce: Option<&str>) -> Option<(u64, Duration)> {
    if let (Auth::DiHmac { keys }, Some(request_nonce), Some(body)) = (&provider.auth, nonce, &answer.body) {
        let received = ReceivedResponse { request_nonce, status: answer.status, headers: &answer.headers, body };
        if let Ok(signed) = di::authenticate_response(keys, &received) {
            return Some((signed.timestamp_ms, Duration::ZERO));
        }
    }
    let date = answer.headers.get(DATE)?.to_str().ok()?;
    Some((http_date_ms(date)?, DATE_DOUBT))
}

fn http_date_ms(text: &str) -> Option<u64> {
    let form =
        format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
    let seconds = PrimitiveDateTime::parse(text, form).ok()?.assume_utc().unix_timestamp();
    u64::try_from(seconds).ok()?.checked_mul(1000)
}

/// As the proxy's own calls have them.
fn own_headers(provider: &Provider, auth: &Auth) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &provider.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), value.parse()) {
            headers.insert(name, value);
        }
    }
    match auth {
        Auth::None | Auth::DiHmac { .. } => {}
        Auth::Bearer { secret } => drop(headers.insert(AUTHORIZATION, credential(b"Bearer ", secret.expose()))),
        Auth::Header { name, secret } => {
            if let Ok(name) = HeaderName::try_from(name) {
                headers.insert(name, credential(b"", secret.expose()));
            }
        }
    }
    headers
}

fn request(provider: &Provider, method: Method, path: &str, mut headers: HeaderMap, body: Bytes) -> Request<Bytes> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    // Configuration has checked both; what does not fit is left out rather than sent half.
    *request.uri_mut() = path.parse().unwrap_or_default();
    if let Ok(host) = provider.base_url.authority().parse() {
        headers.insert(HOST, host);
    }
    headers.insert(USER_AGENT, http::HeaderValue::from_static(concat!("weighbridge/", env!("CARGO_PKG_VERSION"))));
    headers.insert(ACCEPT_ENCODING, http::HeaderValue::from_static("identity"));
    *request.headers_mut() = headers;
    match provider.http {
        HttpVersion::One => request,
        HttpVersion::Two => multiplex::request(request, provider.base_url.tls),
    }
}

/// A signed POST and its nonce.
fn signed(provider: &Provider, path: &str, body: Bytes) -> Result<(Request<Bytes>, String), String> {
    let Auth::DiHmac { keys } = &provider.auth else { return Err("the provider has no signing key".to_owned()) };
    let (key, nonce) = (keys.signer(), di::fresh_nonce().map_err(|error| error.to_string())?);
    let parts = RequestParts {
        key_id: &key.id,
        timestamp_ms: clock::unix_ms(),
        nonce: &nonce,
        method: Method::POST.as_str(),
        host: &provider.base_url.authority(),
        path,
        query: "",
        token: b"",
        body: &body,
    };
    let signature = di::sign_request(key.secret.expose(), &parts).map_err(|error| error.to_string())?;
    let mut headers = own_headers(provider, &provider.auth);
    let value = signature.header_value().parse().map_err(|_| "the signature does not fit a header".to_owned())?;
    headers.insert(HeaderName::from_static(di::REQUEST_HEADER), value);
    headers.insert(CONTENT_TYPE, http::HeaderValue::from_static(wire::TOKEN_MEDIA_TYPE));
    Ok((request(provider, Method::POST, path, headers, body), nonce))
}

#[cfg(test)]
mod tests {
    use super::super::report::Verdict;
    use super::*;

    fn blank() -> Finding {
        Finding::new("x", "")
    }

    #[test]
    fn a_certificate_that_ends_soon_is_a_warning_with_its_days() {
        let judged = |days: u64| judged_end(blank(), "CN=ca", 1_000 + days * 86_400, 1_000);
        assert_eq!(judged(21).verdict, Verdict::Ok);
        assert_eq!(judged(20).verdict, Verdict::Warn);
        assert!(judged(20).said.contains("20 days left"));
    }

    #[test]
    fn a_skew_beyond_the_window_fails_only_who_signs() {
        assert_eq!(judged_skew(blank(), -400_000, 1_000, true).verdict, Verdict::Fail);
        assert_eq!(judged_skew(blank(), -400_000, 1_000, false).verdict, Verdict::Warn);
        assert_eq!(judged_skew(blank(), 31_000, 500, true).verdict, Verdict::Warn);
        assert_eq!(judged_skew(blank(), 31_000, 2_000, true).verdict, Verdict::Ok, "it may be less");
    }

    #[test]
    fn each_status_says_what_is_known_of_the_key() {
        let verdict = |status: u16| judged_key(blank(), StatusCode::from_u16(status).unwrap()).verdict;
        assert_eq!([200, 401, 403].map(verdict), [Verdict::Ok, Verdict::Fail, Verdict::Fail]);
        assert_eq!([302, 404, 429, 503].map(verdict), [Verdict::Warn; 4]);
    }

    #[test]
    fn the_date_of_an_answer_is_read() {
        assert_eq!(http_date_ms("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777_000));
        assert_eq!(http_date_ms("yesterday"), None);
    }
}
