//! The client's side: requests, whole answers, and answers read bit by bit.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use weighbridge::upstream::dial::Io;

/// A client's connection, closed when it is dropped.
pub struct Client {
    pub sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Client {
    /// Speaks HTTP/1.1 over `io`.
    pub async fn over(io: impl Io + 'static) -> Self {
        let (sender, connection) = http1::handshake(TokioIo::new(io)).await.unwrap();
        Self { sender, driver: tokio::spawn(async move { drop(connection.await) }) }
    }

    /// One request, read to the end of its answer.
    pub async fn call(&mut self, request: Request<Full<Bytes>>) -> Answer {
        self.sender.ready().await.unwrap();
        let started = Instant::now();
        let (head, body) = self.sender.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status.as_u16(), headers: head.headers, body, took: started.elapsed() }
    }
}

/// A POST of JSON.
pub fn post(path: &str, key: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(path)
        .header(HOST, "proxy.test")
        .header(AUTHORIZATION, format!("Bearer {key}"))
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body.into()))
        .unwrap()
}

/// A GET.
pub fn get(path: &str, key: &str) -> Request<Full<Bytes>> {
    let request = Request::builder().method(Method::GET).uri(path).header(HOST, "proxy.test");
    request.header(AUTHORIZATION, format!("Bearer {key}")).body(Full::default()).unwrap()
}

pub fn chat_request(key: &str, body: &Value) -> Request<Full<Bytes>> {
    post("/v1/chat/completions", key, body.to_string())
}

pub fn risk_request(key: &str, body: &Value) -> Request<Full<Bytes>> {
    post("/v1/risk/assessments", key, body.to_string())
}

/// A chat request with one message.
pub fn chat(model: &str) -> Value {
    json!({ "model": model, "messages": [{ "role": "user", "content": "hello there" }] })
}

/// The same, streamed.
pub fn streamed(model: &str) -> Value {
    json!({ "model": model, "stream": true, "messages": [{ "role": "user", "content": "hello there" }] })
}

/// A payment attempt in CNY.
pub fn payment(out_trade_no: &str, amount: &str) -> Value {
    json!({
        "out_trade_no": out_trade_no, "total_amount": amount, "currency": "CNY", "subject": "demo",
        "merchant": { "id": "m1" }, "user": { "id": "u1" },
    })
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub took: Duration,
}

impl Answer {
    /// A header's text, empty without it.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    /// The data of all events.
    pub fn events(&self) -> Vec<String> {
        events(&self.text())
    }

    /// The words of all content events, or of the whole answer.
    pub fn said(&self) -> String {
        if self.header("content-type").starts_with("text/event-stream") {
            return said(&self.events());
        }
        self.json()["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned()
    }

    /// Fails unless it is a good answer of `provider` after `attempts`.
    pub fn assert_served(&self, provider: &str, attempts: u32) {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!((self.header("wb-provider"), self.header("wb-attempts")), (provider, &*attempts.to_string()));
        let said = self.said();
        assert!(said.starts_with(&format!("This is {provider},")) && said.ends_with("can be seen."), "{said}");
        if self.header("content-type").starts_with("text/event-stream") {
            self.assert_coherent();
        }
    }

    /// Fails unless the stream is one whole stream of one provider.
    fn assert_coherent(&self) {
        let events = self.events();
        assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
        let ids: std::collections::BTreeSet<String> = events
            .iter()
            .filter(|event| *event != "[DONE]")
            .map(|event| serde_json::from_str::<Value>(event).unwrap()["id"].to_string())
            .collect();
        assert_eq!(ids.len(), 1, "one answer, not two: {ids:?}");
        let roles = events.iter().filter(|event| event.contains("\"role\":\"assistant\"")).count();
        assert_eq!(roles, 1, "one role frame");
    }

    /// Fails unless it is an error in OpenAI's shape; returns its code.
    pub fn openai_error(&self) -> String {
        assert_eq!(self.header("content-type"), "application/json");
        let error = &self.json()["error"];
        assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
        for field in ["param", "code"] {
            assert!(error.get(field).is_some_and(|value| value.is_null() || value.is_string()), "{field}: {error}");
        }
        error["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// The data of all events in `text`, comments left out.
pub fn events(text: &str) -> Vec<String> {
    text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).map(str::to_owned).collect()
}

/// The words in content events.
pub fn said(events: &[String]) -> String {
    let words = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
    words.filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
}

/// An answer whose body is read bit by bit.
pub struct Open {
    pub response: Response<Incoming>,
    _client: Client,
}

impl Open {
    /// Sends the request and waits for the head of its answer.
    pub async fn new(mut client: Client, request: Request<Full<Bytes>>) -> Self {
        let response = client.sender.send_request(request).await.unwrap();
        Self { response, _client: client }
    }

    /// The next bytes, `None` at the end.
    pub async fn next(&mut self) -> Option<String> {
        let frame = self.response.body_mut().frame().await?.unwrap();
        Some(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap())
    }

    /// All bytes that are left.
    pub async fn rest(&mut self) -> String {
        let mut text = String::new();
        while let Some(more) = self.next().await {
            text.push_str(&more);
        }
        text
    }
}
