//! Floor 7: the admin plane: health, metrics, status, reload, explanations. On a listener of its own, loopback by default; no caller
//! key opens anything here, and no admin path exists on the data listener.

mod dashboard;
pub mod guard;
mod questions;
pub mod status;
pub mod tail;
pub mod watched;

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use tower::Service;

use self::guard::{Guard, Refusal};
use crate::config::error::ConfigError;
use crate::config::schema;
use crate::gateway::certificates::Certificates;
use crate::gateway::origin::Origin;
use crate::gateway::reload::{LastReload, Reloads};
use crate::gateway::snapshot::{Live, Shared};

/// Everything the admin plane shows.
pub struct Admin {
    /// The configuration in force.
    pub live: Live,
    /// Metrics and process-wide state.
    pub shared: Arc<Shared>,
    /// Where applications connect, as a URL.
    pub data: String,
    /// The last reload's result.
    pub last: Arc<LastReload>,
    /// Asks for a reload.
    pub reloads: Reloads,
    /// True from the first sign of shutdown on.
    pub draining: Arc<AtomicBool>,
    /// Who may ask.
    pub guard: Guard,
    /// The listeners' certificate, if they have one.
    pub certificates: Option<Arc<Certificates>>,
    /// Where configuration comes from, for those who ask what another one would change.
    pub origin: Origin,
}

/// Serves the admin plane; cloned per connection.
#[derive(Clone)]
pub struct AdminService(pub Arc<Admin>);

impl<B> Service<Request<B>> for AdminService
where
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Full<Bytes>>, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let admin = Arc::clone(&self.0);
        let (head, body) = request.into_parts();
        let request = Request::from_parts(head, ());
        async move {
            // Few paths take a body, and none is read for anybody who may not ask.
            Ok(match admin.refused(&request) {
                Some(refusal) => refusal,
                None if questions::is_one(request.uri().path()) => questions::answer(admin, request, body).await,
                None => admin.answer(&request).await,
            })
        }
        .boxed()
    }
}

impl Admin {
    /// What whoever may not ask is told, and who asks for what is not there.
    fn refused(&self, request: &Request<()>) -> Option<Response<Full<Bytes>>> {
        let (uri, headers) = (request.uri(), request.headers());
        if let Err(refusal) = self.guard.check(uri, headers) {
            // A browser sends no token with a page; this one shows nothing before it has one.
            let page = (refusal == Refusal::Token && is_read(request.method())).then(|| dashboard::file(uri.path()));
            return page.flatten().or_else(|| Some(text(refusal.status(), refusal.message())));
        }
        // Load balancers ask with HEAD; hyper leaves the body out.
        let (methods, allow): (&[Method], _) = match uri.path() {
            "/livez"
            | "/readyz"
            | "/metrics"
            | "/status.json"
            | "/api/overview"
            | "/dashboard"
            | "/dashboard.js"
            | "/dashboard.css"
            | "/schema/routes.json"
            | "/schema/provider.json" => (&[Method::GET, Method::HEAD], "GET, HEAD"),
            "/-/reload" | "/-/explain" | "/-/diff" => (&[Method::POST], "POST"),
            _ => return Some(text(StatusCode::NOT_FOUND, "no such path\n")),
        };
        if !methods.contains(request.method()) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
            return Some(response);
        }
        let refusal = if request.method() == Method::POST { guard::check_origin(uri, headers).err() } else { None };
        refusal.map(|refusal| text(refusal.status(), refusal.message()))
    }

    async fn answer(self: &Arc<Self>, request: &Request<()>) -> Response<Full<Bytes>> {
        match request.uri().path() {
            "/livez" => text(StatusCode::OK, "alive\n"),
            "/readyz" => self.readiness(),
            "/metrics" => {
                // A window may have turned since anybody called.
                self.live.load().turn_budgets();
                self.shared.metrics.pressure.in_flight(self.shared.gate.held_bytes());
                typed(StatusCode::OK, "text/plain; version=0.0.4", self.shared.metrics.render())
            }
            "/schema/routes.json" => self::schema(schema::ROUTES),
            "/schema/provider.json" => self::schema(schema::PROVIDER),
            "/status.json" => json(StatusCode::OK, &status::status(self)),
            "/api/overview" => json(StatusCode::OK, &dashboard::overview(self)),
            "/-/reload" => self.reload().await,
            path => dashboard::file(path).unwrap_or_else(|| text(StatusCode::NOT_FOUND, "no such path\n")),
        }
    }

    /// Upstream trouble does not make us unready: other routes work, and a restart would not help.
    fn readiness(&self) -> Response<Full<Bytes>> {
        if self.draining.load(Ordering::Acquire) {
            text(StatusCode::SERVICE_UNAVAILABLE, "draining\n")
        } else {
            text(StatusCode::OK, "ready\n")
        }
    }

    async fn reload(self: &Arc<Self>) -> Response<Full<Bytes>> {
        let admin = Arc::clone(self);
        let result = tokio::task::spawn_blocking(move || admin.reloads.now()).await;
        match result {
            Ok(Ok(())) => json(StatusCode::OK, &serde_json::json!({ "config_hash": self.version() })),
            Ok(Err(errors)) if errors.is_empty() => {
                text(StatusCode::SERVICE_UNAVAILABLE, "the reload did not answer, try again\n")
            }
            Ok(Err(errors)) => json(StatusCode::UNPROCESSABLE_ENTITY, &mistakes(&errors)),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the reload failed\n"),
        }
    }

    fn version(&self) -> String {
        self.live.load().table().version().to_string()
    }
}

/// What editors complete from: the keys of this very version.
fn schema(name: &str) -> Response<Full<Bytes>> {
    typed(StatusCode::OK, "application/schema+json", schema::text(name).unwrap_or_default())
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn mistakes(errors: &[ConfigError]) -> serde_json::Value {
    serde_json::json!({ "errors": errors })
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", body)
}

fn json(status: StatusCode, body: &impl serde::Serialize) -> Response<Full<Bytes>> {
    typed(status, "application/json", serde_json::to_vec_pretty(body).unwrap_or_default())
}

fn typed(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
