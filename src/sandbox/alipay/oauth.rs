//! Access tokens: the client-credentials grant of RFC 6749 section 4.4, the client authenticated by its signature.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use serde_json::json;
use tokio::time::Instant;

use super::Shared;
use super::admit::Admitted;
use super::memory::IssuedToken;
use super::reply::Reply;
use crate::sign::di;

const SCOPES: [&str; 2] = ["risk:score", "risk:report"];

pub(super) fn issue(shared: &Shared, admitted: &Admitted, body: &[u8]) -> Reply {
    let bad = |code| Reply::error(StatusCode::BAD_REQUEST, code);
    let Some(form) = form(body) else { return bad("invalid_request") };
    let field = |name: &str| form.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    match field("grant_type") {
        Some("client_credentials") => {}
        Some(_) => return bad("unsupported_grant_type"),
        None => return bad("invalid_request"),
    }
    let asked = field("scope").map_or(SCOPES.to_vec(), |scope| scope.split(' ').collect());
    let scopes: Vec<&'static str> = SCOPES.into_iter().filter(|scope| asked.contains(scope)).collect();
    if scopes.is_empty() || asked.iter().any(|scope| !SCOPES.contains(scope)) {
        return bad("invalid_scope");
    }
    let mut bytes = [0u8; 32];
    if getrandom::fill(&mut bytes).is_err() {
        return Reply::error(StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable");
    }
    let token = format!("tok_{}", URL_SAFE_NO_PAD.encode(bytes));
    let answer = json!({
        "access_token": token,
        "token_type": "Bearer",
        "expires_in": whole_seconds(shared.token_life),
        "scope": scopes.join(" "),
    });
    let expires = Instant::now() + shared.token_life;
    shared.memory().issue(token, IssuedToken { key_id: admitted.key_id.clone(), expires, scopes });
    Reply::json(StatusCode::OK, &answer)
}

/// At least one: a token is never announced as dead on arrival.
fn whole_seconds(life: Duration) -> u64 {
    life.as_secs().max(1)
}

/// Reads a form, `None` if it is not UTF-8 or names a field twice.
fn form(body: &[u8]) -> Option<Vec<(String, String)>> {
    let text = std::str::from_utf8(body).ok()?;
    let mut fields: Vec<(String, String)> = Vec::new();
    for piece in text.split('&').filter(|piece| !piece.is_empty()) {
        let (name, value) = piece.split_once('=').unwrap_or((piece, ""));
        let (name, value) = (unescaped(name)?, unescaped(value)?);
        if fields.iter().any(|(known, _)| *known == name) {
            return None;
        }
        fields.push((name, value));
    }
    Some(fields)
}

/// In a form, unlike in a query that is signed, a plus is a space.
fn unescaped(text: &str) -> Option<String> {
    String::from_utf8(di::percent_decoded(&text.replace('+', " "))).ok()
}
