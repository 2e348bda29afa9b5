//! Whether the proxy's own addresses are free, or a proxy answers there already.

use std::net::SocketAddr;

use bytes::Bytes;
use http::header::HOST;
use http::{Request, StatusCode};
use tokio::time::timeout;

use super::report::Finding;
use super::{DoctorArgs, PATIENCE, ask, certificate};
use crate::config::table::BaseUrl;
use crate::config::tls::HttpVersion;
use crate::server::bind;

/// Both listeners. Nothing is accepted while they are tried.
pub(super) async fn probe(args: &DoctorArgs) -> Vec<Finding> {
    let admin = bind(args.admin_listen).map(drop);
    let data = bind(args.listen).map(drop);
    let running = admin.is_err() && timeout(PATIENCE, answers(args.admin_listen)).await.unwrap_or(false);
    vec![judged("admin port", args.admin_listen, admin, running), judged("data port", args.listen, data, running)]
}

fn judged(check: &str, address: SocketAddr, free: std::io::Result<()>, running: bool) -> Finding {
    let flag = if check.starts_with("admin") { "--admin-listen" } else { "--listen" };
    match free {
        Ok(()) => Finding::new(check, format!("{address} is free")).ok(),
        Err(_) if running => Finding::new(check, format!("{address} is in use, and a proxy is serving")).ok(),
        Err(error) => Finding::new(check, format!("{address} cannot be had: {error}"))
            .fail(&format!("end what uses it, or choose another address with {flag}")),
    }
}

/// True if it says what ours says.
async fn answers(address: SocketAddr) -> bool {
    let host = address.ip().to_string();
    let url = BaseUrl { tls: false, host, port: address.port(), path: String::new() };
    let Ok((tls, _)) = certificate::client(None) else { return false };
    let request = Request::get("/livez").header(HOST, url.authority()).body(Bytes::new());
    let (Ok(request), Ok(io)) = (request, ask::connect(&url, true, &tls).await) else { return false };
    let alive = |answer: ask::Answer| {
        let ours = answer.body.as_deref() == Some(b"alive\n");
        // One that wants a token is taken to be ours too.
        (answer.status == StatusCode::OK && ours) || answer.status == StatusCode::UNAUTHORIZED
    };
    ask::exchange(HttpVersion::One, io, request).await.is_ok_and(alive)
}
