//! Around the admin plane: one log line for each action of an operator, and the stream of `/-/tail`.
//!
//! An action is whatever is asked of `/-/` or by another method than GET and HEAD; reading health, metrics and status is
//! none. Whoever is turned away is noted too, at most once a second, because knocking costs nothing.

use std::convert::Infallible;
use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use tokio::time::Instant;
use tower::Service;

use crate::admin::Admin;
use crate::admin::tail::{self, Following};
use crate::domain::clock;
use crate::telemetry::access::actions::ActionRecord;

/// Longest name of an action; anything else is `other`.
const LONGEST_ACTION: usize = 32;

/// Either whole or as it happens.
type Told = Either<Full<Bytes>, Following<Box<dyn FnMut(u64) + Send>>>;

/// Wraps the admin plane; cloned per connection.
#[derive(Clone)]
pub struct Watched<S> {
    inner: S,
    admin: Arc<Admin>,
    /// The second in which somebody was last noted as turned away.
    refused: Arc<AtomicU64>,
}

impl<S> Watched<S> {
    /// Watches over `inner`, which answers for `admin`.
    pub fn new(inner: S, admin: Arc<Admin>) -> Self {
        Self { inner, admin, refused: Arc::default() }
    }
}

impl<S, B, T> Service<Request<B>> for Watched<S>
where
    S: Service<Request<B>, Response = Response<T>, Error = Infallible>,
    S::Future: Send + 'static,
    T: Send + 'static,
{
    type Response = Response<Either<T, Told>>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let act = Act::of(&request, &self.admin, &self.refused);
        if request.uri().path() == tail::PATH {
            let answer = tail(&request, act);
            return ready(Ok(answer.map(Either::Right))).boxed();
        }
        let answer = self.inner.call(request);
        async move {
            let response = answer.await?;
            act.answered(response.status());
            Ok(response.map(Either::Left))
        }
        .boxed()
    }
}

fn tail<B>(request: &Request<B>, act: Act) -> Response<Told> {
    let refused = |status, told: String| {
        act.answered(status);
        with_type(status, "text/plain; charset=utf-8", Either::Left(Full::from(told)))
    };
    if let Err(refusal) = act.admin.guard.check(request.uri(), request.headers()) {
        return refused(refusal.status(), refusal.message().to_owned());
    }
    if request.method() != Method::GET {
        let mut response = refused(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n".to_owned());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    match tail::follow(&act.admin, request.uri().query().unwrap_or_default()) {
        Ok(reader) => {
            act.answered(StatusCode::OK);
            let ended: Box<dyn FnMut(u64) + Send> = Box::new(move |missed| act.ended(missed));
            with_type(StatusCode::OK, "application/x-ndjson", Either::Right(Following::new(reader, ended)))
        }
        Err((status, told)) => refused(status, told),
    }
}

fn with_type(status: StatusCode, media_type: &'static str, body: Told) -> Response<Told> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What somebody is doing, until it is written down.
struct Act {
    admin: Arc<Admin>,
    refused: Arc<AtomicU64>,
    /// `None` for reading.
    action: Option<String>,
    peer: Option<SocketAddr>,
    begun: Instant,
}

impl Act {
    fn of<B>(request: &Request<B>, admin: &Arc<Admin>, refused: &Arc<AtomicU64>) -> Self {
        let path = request.uri().path();
        let acts = path.starts_with("/-/") || ![Method::GET, Method::HEAD].contains(request.method());
        Self {
            admin: Arc::clone(admin),
            refused: Arc::clone(refused),
            action: acts.then(|| name(path)),
            peer: request.extensions().get::<SocketAddr>().copied(),
            begun: Instant::now(),
        }
    }

    fn answered(&self, status: StatusCode) {
        let result = match status.as_u16() {
            ..400 => "done",
            400..500 => "refused",
            _ => "failed",
        };
        let turned_away = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::MISDIRECTED_REQUEST];
        if turned_away.contains(&status) {
            let now = clock::unix_seconds();
            if self.refused.swap(now, Relaxed) != now {
                self.write(self.action.as_deref().unwrap_or("read"), status, "turned_away", None);
            }
        } else if let Some(action) = &self.action {
            self.write(action, status, result, None);
        }
    }

    fn ended(&self, missed: u64) {
        self.write("tail", StatusCode::OK, "ended", Some(missed));
    }

    fn write(&self, action: &str, status: StatusCode, result: &'static str, missed: Option<u64>) {
        self.admin.shared.log.action(&ActionRecord {
            action,
            peer: self.peer,
            by: self.admin.guard.means(),
            status: status.as_u16(),
            result,
            duration: self.begun.elapsed(),
            config_version: &self.admin.version(),
            missed,
        });
    }
}

/// The path's last words, if they are words: paths are whatever somebody sent.
fn name(path: &str) -> String {
    let name = path.strip_prefix("/-/").unwrap_or(path).trim_matches('/').replace('/', ".");
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    let is_name = !name.is_empty() && name.len() <= LONGEST_ACTION && name.bytes().all(plain);
    if is_name { name } else { "other".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_has_a_plain_name_whatever_the_path() {
        for (path, called) in [
            ("/-/reload", "reload"),
            ("/-/notices/resend", "notices.resend"),
            ("/status.json", "status.json"),
            ("/-/", "other"),
            ("/-/Sk-Secret", "other"),
            ("/-/%0a", "other"),
            ("/-/an-action-of-absurdly-great-length", "other"),
        ] {
            assert_eq!(name(path), called, "{path}");
        }
    }
}
