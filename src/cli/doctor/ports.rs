//! Whether the proxy's own addresses are free, or a proxy answers there already.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::header::HOST;
use http::{Request, StatusCode};
use rustls::ClientConfig;
use tokio::time::timeout;

use super::report::Finding;
use super::{DoctorArgs, PATIENCE, ask, certificate};
use crate::config::table::BaseUrl;
use crate::config::tls::HttpVersion;
use crate::server::bind;

/// What is at an address that cannot be had.
#[derive(Clone, PartialEq, Eq)]
enum There {
    /// One that says what ours says.
    Ours,
    /// Somebody who speaks TLS, and why no more is known.
    Secured(String),
    Stranger,
}

/// Both listeners. Nothing is accepted while they are tried.
pub(super) async fn probe(args: &DoctorArgs) -> Vec<Finding> {
    let admin = bind(args.admin_listen).map(drop);
    let data = bind(args.listen).map(drop);
    let there = match &admin {
        Ok(()) => There::Stranger,
        Err(_) => timeout(PATIENCE, who_answers(args)).await.unwrap_or(There::Stranger),
    };
    vec![judged("admin port", args.admin_listen, admin, &there), judged("data port", args.listen, data, &there)]
}

fn judged(check: &str, address: SocketAddr, free: std::io::Result<()>, there: &There) -> Finding {
    let is_admin = check.starts_with("admin");
    let flag = if is_admin { "--admin-listen" } else { "--listen" };
    match (free, there) {
        (Ok(()), _) => Finding::new(check, format!("{address} is free")).ok(),
        (Err(_), There::Ours) => Finding::new(check, format!("{address} is in use, and a proxy is serving")).ok(),
        (Err(_), There::Secured(why)) => {
            let told = if is_admin { format!(": {why}") } else { String::new() };
            Finding::new(check, format!("{address} is in use, and whether by a proxy cannot be seen{told}"))
                .warn("if it is the proxy, give the file of its certificate with --ca")
        }
        (Err(error), There::Stranger) => Finding::new(check, format!("{address} cannot be had: {error}"))
            .fail(&format!("end what uses it, or choose another address with {flag}")),
    }
}

/// Asks in the clear first, unless the admin listener is said to speak TLS: one that does says so.
async fn who_answers(args: &DoctorArgs) -> There {
    if !args.trust.speaks_tls() {
        match ask_whether_alive(args.admin_listen, None).await {
            Ok(answer) if is_ours(&answer) => return There::Ours,
            Ok(answer) if answer.status == StatusCode::BAD_REQUEST => {}
            _ => return There::Stranger,
        }
    }
    let asked = match args.trust.config() {
        Ok(config) => ask_whether_alive(args.admin_listen, Some(config)).await,
        Err(why) => Err(why),
    };
    match asked {
        Ok(answer) if is_ours(&answer) => There::Ours,
        Ok(_) => There::Stranger,
        Err(why) => There::Secured(why),
    }
}

/// One that wants a token is taken to be ours too.
fn is_ours(answer: &ask::Answer) -> bool {
    let alive = answer.body.as_deref() == Some(b"alive\n");
    (answer.status == StatusCode::OK && alive) || answer.status == StatusCode::UNAUTHORIZED
}

async fn ask_whether_alive(address: SocketAddr, tls: Option<Arc<ClientConfig>>) -> Result<ask::Answer, String> {
    let (ip, port) = (address.ip(), address.port());
    // Who listens on all addresses is reached over this machine's own.
    let ip = match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let url = BaseUrl { tls: tls.is_some(), host: ip.to_string(), port, path: String::new() };
    let tls = match tls {
        Some(tls) => tls,
        None => certificate::client(None).map_err(|error| error.to_string())?.0,
    };
    let request = Request::get("/livez").header(HOST, url.authority()).body(Bytes::new());
    let io = ask::connect(&url, true, &tls).await?;
    let io = ask::secure(&url, HttpVersion::One, io, &tls).await?;
    ask::exchange(HttpVersion::One, io, request.map_err(|error| error.to_string())?).await
}
