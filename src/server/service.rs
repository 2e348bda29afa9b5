//! Between hyper's idea of a service and ours, and the place where requests are counted in and out.
//!
//! It deliberately does nothing a layer could do: no ids, no logging, no error pages. The one answer it makes itself is
//! the 431 for too many header fields, because hyper's own limit of that kind costs an allocation a request.

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tower::Service;

use super::activity::{Activity, InFlight};
use crate::flight::arrival::Secured;
use crate::telemetry::labels::ConnectionEnd;

/// One connection's service. Services in this program are always ready (DESIGN.md, "One rule for readiness"), so it is
/// called without being asked, and no clone is made for each request.
pub(super) struct Counted<S> {
    /// hyper calls with `&self`, tower wants `&mut self`; calls come one at a time from one task.
    service: RefCell<S>,
    activity: Arc<Activity>,
    head_fields: usize,
    secured: Option<Arc<Secured>>,
}

impl<S> Counted<S> {
    pub(super) fn new(service: S, activity: Arc<Activity>, head_fields: usize) -> Self {
        Self { service: RefCell::new(service), activity, head_fields, secured: None }
    }

    /// Requests come through our own TLS, or not.
    pub(super) fn secured(self, secured: Option<Arc<Secured>>) -> Self {
        Self { secured, ..self }
    }
}

impl<S, B> hyper::service::Service<Request<Incoming>> for Counted<S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
{
    type Response = Response<CountedBody<B>>;
    type Error = Infallible;
    type Future = CountedFuture<S::Future>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        if let Some(secured) = &self.secured {
            request.extensions_mut().insert(Arc::clone(secured));
        }
        if let Some(peer) = self.activity.peer() {
            request.extensions_mut().insert(peer);
        }
        let in_flight = Some(self.activity.begin_request());
        let answer = (request.headers().len() <= self.head_fields).then(|| self.service.borrow_mut().call(request));
        CountedFuture { answer, in_flight }
    }
}

pin_project! {
    /// An answer to come; `None` if the request was refused.
    pub(super) struct CountedFuture<F> {
        #[pin]
        answer: Option<F>,
        in_flight: Option<InFlight>,
    }
}

impl<F, B> Future for CountedFuture<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
{
    type Output = Result<Response<CountedBody<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answered = match this.answer.as_pin_mut() {
            Some(answer) => Some(ready!(answer.poll(cx))?),
            None => None,
        };
        let in_flight = this.in_flight.take();
        let mut response = match answered {
            Some(response) => response.map(|body| CountedBody { body: Some(body), in_flight: None }),
            None => too_many_fields(in_flight.as_ref()),
        };
        if let Some(activity) = in_flight.as_ref().map(InFlight::activity)
            && activity.is_draining()
            && !activity.is_http2()
        {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response.body_mut().in_flight = in_flight;
        Poll::Ready(Ok(response))
    }
}

fn too_many_fields<B>(in_flight: Option<&InFlight>) -> Response<CountedBody<B>> {
    let mut response = Response::new(CountedBody { body: None, in_flight: None });
    *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    if let Some(activity) = in_flight.map(InFlight::activity).filter(|activity| !activity.is_http2()) {
        activity.end_because(ConnectionEnd::HeadFields);
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

pin_project! {
    /// An answer's body. The request is in flight until hyper drops it.
    pub(super) struct CountedBody<B> {
        #[pin]
        body: Option<B>,
        in_flight: Option<InFlight>,
    }
}

impl<B: Body<Data = Bytes>> Body for CountedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let Some(body) = this.body.as_pin_mut() else { return Poll::Ready(None) };
        body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
