//! What the simulated Alipay remembers. Everything in here has a bound; only nonces are never forgotten early.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::admit::{Admitted, Refusal};
use crate::sign::di::WINDOW_MS;
use crate::sign::hmac::mac;

/// How long a nonce is kept: a signature may be from 300 s ahead and be shown again until it is 300 s old, and 30 s more.
const NONCE_LIFE: Duration = Duration::from_millis(2 * WINDOW_MS + 30_000);
const MOST_TOKENS: usize = 10_000;
const MOST_ATTEMPTS: usize = 100_000;
const MOST_SEEN: usize = 10_000;
const MOST_SEEN_BYTES: usize = 64 * 1024 * 1024;

/// One request it was sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Seen {
    /// The path as sent.
    pub path: String,
    /// The payment attempt the body names, empty if it names none.
    pub out_trade_no: String,
    /// The key id the signature header names, empty if it could not be read.
    pub key_id: String,
    /// The nonce the signature header names, empty if it could not be read.
    pub nonce: String,
    /// The time the signature header names, milliseconds since 1970, 0 if it could not be read.
    pub timestamp_ms: u64,
    /// True if it came with a valid token.
    pub token_ok: bool,
    /// Which of the receiver's checks it failed, if any.
    pub refusal: Option<Refusal>,
    /// The exact body.
    pub body: Bytes,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, out_trade_no, key_id, timestamp_ms, token_ok, refusal, .. } = self;
        f.debug_struct("Seen")
            .field("path", path)
            .field("out_trade_no", out_trade_no)
            .field("key_id", key_id)
            .field("timestamp_ms", timestamp_ms)
            .field("token_ok", token_ok)
            .field("refusal", refusal)
            .finish_non_exhaustive()
    }
}

pub(super) struct Memory {
    nonces: Nonces,
    tokens: HashMap<String, IssuedToken>,
    token_order: VecDeque<String>,
    tokens_issued: u64,
    /// Digests of bodies by key id and idempotency key.
    attempts: HashMap<(String, String), [u8; 32]>,
    attempt_order: VecDeque<(String, String)>,
    billed: u64,
    seen: VecDeque<Seen>,
    seen_bytes: usize,
    refused: HashMap<Refusal, u64>,
}

pub(super) struct IssuedToken {
    pub(super) key_id: String,
    pub(super) expires: Instant,
    pub(super) scopes: Vec<&'static str>,
}

impl Memory {
    pub(super) fn new(nonce_room: usize) -> Self {
        Self {
            nonces: Nonces { room: nonce_room, known: HashSet::new(), order: VecDeque::new() },
            tokens: HashMap::new(),
            token_order: VecDeque::new(),
            tokens_issued: 0,
            attempts: HashMap::new(),
            attempt_order: VecDeque::new(),
            billed: 0,
            seen: VecDeque::new(),
            seen_bytes: 0,
            refused: HashMap::new(),
        }
    }

    pub(super) fn use_nonce(&mut self, key_id: &str, nonce: &str) -> Result<(), Refusal> {
        self.nonces.insert(mac(key_id.as_bytes(), &[nonce.as_bytes()]), Instant::now())
    }

    /// Forgets the oldest token when there are too many: its holder is told to fetch another.
    pub(super) fn issue(&mut self, token: String, issued: IssuedToken) {
        if self.token_order.len() >= MOST_TOKENS
            && let Some(oldest) = self.token_order.pop_front()
        {
            self.tokens.remove(&oldest);
        }
        self.token_order.push_back(token.clone());
        self.tokens.insert(token, issued);
        self.tokens_issued += 1;
    }

    pub(super) fn token_is_valid(&self, admitted: &Admitted) -> bool {
        self.tokens
            .get(&admitted.token)
            .is_some_and(|issued| issued.key_id == admitted.key_id && Instant::now() < issued.expires)
    }

    pub(super) fn token_may_score(&self, admitted: &Admitted) -> bool {
        self.tokens.get(&admitted.token).is_some_and(|issued| issued.scopes.contains(&"risk:score"))
    }

    /// Remembers what an idempotency key stands for. The oldest is forgotten when there are too many.
    pub(super) fn attempt(&mut self, key_id: &str, key: &str, digest: [u8; 32]) -> Result<(), Refusal> {
        let key = (key_id.to_owned(), key.to_owned());
        match self.attempts.get(&key) {
            Some(known) if *known == digest => return Ok(()),
            Some(_) => return Err(Refusal::Reused),
            None => {}
        }
        if self.attempt_order.len() >= MOST_ATTEMPTS
            && let Some(oldest) = self.attempt_order.pop_front()
        {
            self.attempts.remove(&oldest);
        }
        self.attempt_order.push_back(key.clone());
        self.attempts.insert(key, digest);
        self.billed += 1;
        Ok(())
    }

    pub(super) fn see(&mut self, seen: Seen) {
        if let Some(refusal) = seen.refusal {
            self.refuse(refusal);
        }
        self.seen_bytes += seen.body.len();
        self.seen.push_back(seen);
        while self.seen.len() > MOST_SEEN || self.seen_bytes > MOST_SEEN_BYTES {
            let Some(oldest) = self.seen.pop_front() else { break };
            self.seen_bytes -= oldest.body.len();
        }
    }

    pub(super) fn refuse(&mut self, refusal: Refusal) {
        *self.refused.entry(refusal).or_default() += 1;
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.iter().cloned().collect()
    }

    pub(super) fn refused(&self, refusal: Refusal) -> u64 {
        self.refused.get(&refusal).copied().unwrap_or_default()
    }

    pub(super) fn tokens_issued(&self) -> u64 {
        self.tokens_issued
    }

    pub(super) fn revoke_tokens(&mut self) {
        self.tokens.clear();
        self.token_order.clear();
    }

    pub(super) fn billed(&self) -> u64 {
        self.billed
    }
}

/// Nonces in the order in which they came, which is also the order in which they may be forgotten.
struct Nonces {
    room: usize,
    known: HashSet<[u8; 32]>,
    order: VecDeque<(Instant, [u8; 32])>,
}

impl Nonces {
    fn insert(&mut self, nonce: [u8; 32], now: Instant) -> Result<(), Refusal> {
        while let Some((came, oldest)) = self.order.front() {
            if now.duration_since(*came) < NONCE_LIFE {
                break;
            }
            self.known.remove(oldest);
            self.order.pop_front();
        }
        if self.known.contains(&nonce) {
            return Err(Refusal::Replay);
        }
        if self.known.len() >= self.room {
            return Err(Refusal::NonceRoom);
        }
        self.known.insert(nonce);
        self.order.push_back((now, nonce));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(body: &'static [u8]) -> Seen {
        let [path, out_trade_no, key_id, nonce] = [const { String::new() }; 4];
        let body = Bytes::from_static(body);
        Seen { path, out_trade_no, key_id, nonce, timestamp_ms: 0, token_ok: false, refusal: None, body }
    }

    #[tokio::test(start_paused = true)]
    async fn c2_a_full_nonce_store_refuses_and_forgets_nothing_before_its_time() {
        let mut memory = Memory::new(2);
        assert_eq!(memory.use_nonce("k1", "a"), Ok(()));
        assert_eq!(memory.use_nonce("k2", "a"), Ok(()));
        assert_eq!(memory.use_nonce("k1", "b"), Err(Refusal::NonceRoom));
        tokio::time::advance(NONCE_LIFE - Duration::from_millis(1)).await;
        assert_eq!(memory.use_nonce("k1", "b"), Err(Refusal::NonceRoom));
        assert_eq!(memory.use_nonce("k1", "a"), Err(Refusal::Replay));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(memory.use_nonce("k1", "b"), Ok(()));
        assert_eq!(memory.use_nonce("k1", "a"), Ok(()));
    }

    #[test]
    fn only_the_newest_requests_are_kept() {
        let mut memory = Memory::new(0);
        for _ in 0..=MOST_SEEN {
            memory.see(seen(b"x"));
        }
        assert_eq!((memory.seen.len(), memory.seen_bytes), (MOST_SEEN, MOST_SEEN));
        let large: &'static [u8] = &[0; 60 * 1024];
        for _ in 0..2_000 {
            memory.see(seen(large));
        }
        assert!(memory.seen_bytes <= MOST_SEEN_BYTES && memory.seen.len() < 2_000);
    }
}
