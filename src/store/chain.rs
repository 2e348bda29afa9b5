//! The chain: what a record's hash covers, what a checkpoint says, and how to find the first record that is not as it was.
//!
//! Pure. A hash covers the ciphertext of personal fields, never the text, so that destroying a key changes no hash. The
//! chain alone finds edits, removals and swaps; a cut tail or a file replaced as a whole is found only with a checkpoint that
//! was kept elsewhere.

use std::collections::BTreeMap;

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// SHA-256 of something.
pub type Hash = [u8; 32];
/// The random name of a chain.
pub type ChainId = [u8; 16];

const RECORD: &[u8] = b"weighbridge audit record 1\n";
const ROOT: &[u8] = b"weighbridge audit chain 1\n";
const CHECKPOINT: &[u8] = b"weighbridge audit checkpoint 1\n";

/// Everything of a record but its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Content<'a> {
    /// `decision`, `outcome`, `refusal`, `erasure`, `expiry`, `gap`.
    pub kind: &'a str,
    /// The decision it is or is about; another name for the other kinds.
    pub id: &'a str,
    /// When it was written, milliseconds since 1970.
    pub at: i64,
    /// Whose it is.
    pub tenant: &'a str,
    /// What everybody who may read the file may know.
    pub body: &'a [u8],
    /// Whose key seals the rest.
    pub subject: Option<&'a [u8]>,
    /// The rest, sealed.
    pub sealed: Option<&'a [u8]>,
}

/// A record as it lies in the file.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Its number, from 1.
    pub seq: i64,
    /// What it says.
    pub content: Content<'a>,
    /// The hash of the record before it, as it claims.
    pub prev: &'a [u8],
    /// Its own, as it claims.
    pub hash: &'a [u8],
}

/// What the first record follows.
pub fn root(chain: &ChainId) -> Hash {
    Sha256::new().chain_update(ROOT).chain_update(chain).finalize().into()
}

/// The hash of a record in its place. Every part has its length before it, so no two records have the same bytes.
pub fn hash(seq: i64, prev: &[u8], content: &Content<'_>) -> Hash {
    let mut hash = Sha256::new();
    hash.update(RECORD);
    hash.update(seq.to_be_bytes());
    hash.update(content.at.to_be_bytes());
    let mut part = |part: Option<&[u8]>| {
        let length = part.map_or(u64::MAX, |part| u64::try_from(part.len()).unwrap_or(u64::MAX - 1));
        hash.update(length.to_be_bytes());
        hash.update(part.unwrap_or_default());
    };
    part(Some(prev));
    for text in [content.kind, content.id, content.tenant] {
        part(Some(text.as_bytes()));
    }
    part(Some(content.body));
    part(content.subject);
    part(content.sealed);
    hash.finalize().into()
}

/// What is wrong with the first record that is not as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wrong {
    /// It is not there.
    Missing,
    /// What it says, or its own hash, was changed.
    Changed,
    /// It was replaced by another, hash and all: the next one was written after something else.
    Replaced,
    /// It is no record at all.
    Unreadable,
    /// It is not the record a checkpoint was made of; it, or one since the checkpoint before, was replaced.
    NotAnchored,
    /// It and all after it, up to a checkpoint, are gone.
    CutOff,
    /// It has no place in the chain: its number is below one.
    Misplaced,
    /// Its personal part does not open under its key.
    Unsealable,
    /// The key of its personal part is not the one that was made then.
    KeyDamaged,
    /// The key of its personal part has another last day than it had.
    KeyMoved,
    /// The key of its personal part is gone, and no record says that it was destroyed.
    KeyGone,
    /// It says that a key was destroyed that is there again.
    KeyBack,
}

/// The first bad record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("record {seq} {}", .wrong.text())]
pub struct Finding {
    /// Its number.
    pub seq: i64,
    /// What is wrong with it.
    pub wrong: Wrong,
}

impl Wrong {
    /// The rest of the sentence that begins with the record's number.
    pub fn text(self) -> &'static str {
        match self {
            Self::Missing => "is missing",
            Self::Changed => "was changed after it was written",
            Self::Replaced => "was replaced: the record after it was written after another one",
            Self::Unreadable => "cannot be read",
            Self::NotAnchored => {
                "is not the one a checkpoint was made of: it, or one since the checkpoint before, was replaced"
            }
            Self::CutOff => "and all after it, up to a checkpoint, are missing",
            Self::Misplaced => "has a number that no record can have",
            Self::Unsealable => "has a personal part that its key does not open",
            Self::KeyDamaged => "has a personal part whose key is damaged or was replaced",
            Self::KeyMoved => "has a personal part whose key got another last day",
            Self::KeyGone => "has a personal part whose key is gone, and no record says that it was destroyed",
            Self::KeyBack => "says that a key was destroyed, and it is there: an older file was put back",
        }
    }
}

/// Walks a chain from its first record on.
pub struct Walk {
    next: i64,
    head: Hash,
    anchors: BTreeMap<i64, Hash>,
}

/// What a walk without a finding has shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Proof {
    /// Records, all as they were written.
    pub records: i64,
    /// The hash of the last one.
    pub head: Hash,
    /// Up to which record checkpoints vouch for them; 0 for none.
    pub anchored: i64,
    /// Personal parts that were opened.
    pub readable: u64,
    /// Keys that were destroyed, as the chain says.
    pub destroyed: u64,
}

impl Walk {
    /// Begins at the root of `chain`, with the checkpoints it must pass.
    ///
    /// # Errors
    /// [`Wrong::NotAnchored`] at record 0 if a checkpoint of an empty chain is not of this one.
    pub fn new(chain: &ChainId, anchors: BTreeMap<i64, Hash>) -> Result<Self, Finding> {
        let head = root(chain);
        match anchors.get(&0) {
            Some(anchor) if *anchor != head => Err(Finding { seq: 0, wrong: Wrong::NotAnchored }),
            _ => Ok(Self { next: 1, head, anchors }),
        }
    }

    /// Takes the next record.
    ///
    /// # Errors
    /// The first bad record.
    pub fn take(&mut self, row: &Row<'_>) -> Result<(), Finding> {
        let wrong = |seq, wrong| Err(Finding { seq, wrong });
        if row.seq < self.next {
            return wrong(row.seq, Wrong::Misplaced);
        }
        if row.seq > self.next {
            return wrong(self.next, Wrong::Missing);
        }
        let own = hash(row.seq, row.prev, &row.content);
        if own.as_slice() != row.hash {
            return wrong(row.seq, Wrong::Changed);
        }
        if row.prev != self.head.as_slice() {
            let before = row.seq - 1;
            let vouched = before == 0 || self.anchors.contains_key(&before);
            return wrong(if vouched { row.seq } else { before }, Wrong::Replaced);
        }
        if self.anchors.get(&row.seq).is_some_and(|anchor| *anchor != own) {
            return wrong(row.seq, Wrong::NotAnchored);
        }
        (self.next, self.head) = (row.seq + 1, own);
        Ok(())
    }

    /// The number of the next record.
    pub fn next(&self) -> i64 {
        self.next
    }

    /// There are no more records.
    ///
    /// # Errors
    /// [`Wrong::CutOff`] if a checkpoint knows of more.
    pub fn finish(self) -> Result<Proof, Finding> {
        let anchored = self.anchors.last_key_value().map_or(0, |(seq, _)| *seq);
        if anchored >= self.next {
            return Err(Finding { seq: self.next, wrong: Wrong::CutOff });
        }
        Ok(Proof { records: self.next - 1, head: self.head, anchored, readable: 0, destroyed: 0 })
    }
}

/// A signed word on how far the chain went.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The chain, in hex.
    pub chain: String,
    /// Its last record then; 0 for none.
    pub seq: i64,
    /// That record's hash, in hex.
    pub hash: String,
    /// When, milliseconds since 1970.
    pub at: i64,
    /// Who says so: an Ed25519 key, in hex.
    pub key: String,
    /// The signature, in hex.
    pub signature: String,
}

/// Why a file of checkpoints cannot be believed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadCheckpoint {
    /// A line is no checkpoint.
    #[error("line {0} is no checkpoint")]
    Form(usize),
    /// A signature does not fit.
    #[error("line {0} is not signed by the key it names")]
    Signature(usize),
    /// Another chain's, or another key's.
    #[error("line {0} is of another record or signed by another key: one of the two files was replaced")]
    Other(usize),
    /// Two lines disagree.
    #[error("line {0} contradicts an earlier line")]
    Contradiction(usize),
}

impl Checkpoint {
    /// Signs.
    pub fn sign(chain: &ChainId, (seq, hash): (i64, &Hash), at: i64, key: &Ed25519KeyPair) -> Self {
        let signature = key.sign(&Self::message(chain, seq, hash, at));
        let public = key.public_key().as_ref();
        Self { chain: hex(chain), seq, hash: hex(hash), at, key: hex(public), signature: hex(signature.as_ref()) }
    }

    fn message(chain: &[u8], seq: i64, hash: &[u8], at: i64) -> Vec<u8> {
        [CHECKPOINT, chain, &seq.to_be_bytes(), hash, &at.to_be_bytes()].concat()
    }

    fn is_signed(&self) -> Option<bool> {
        let (chain, hash) = (unhex::<16>(&self.chain)?, unhex::<32>(&self.hash)?);
        let (key, signature) = (unhex::<32>(&self.key)?, unhex::<64>(&self.signature)?);
        let message = Self::message(&chain, self.seq, &hash, self.at);
        Some(self.seq >= 0 && UnparsedPublicKey::new(&ED25519, key).verify(&message, &signature).is_ok())
    }
}

/// The anchors of `chain` in a file of checkpoints, all signed by `key`. An unfinished last line is what a crash leaves and
/// says nothing.
///
/// # Errors
/// [`BadCheckpoint`] for the first line that cannot be believed.
pub fn anchors(file: &str, chain: &ChainId, key: &[u8; 32]) -> Result<BTreeMap<i64, Hash>, BadCheckpoint> {
    let (chain, key) = (hex(chain), hex(key));
    let mut anchors = BTreeMap::new();
    let whole = file.rfind('\n').map_or("", |end| file.get(..=end).unwrap_or_default());
    for (line, number) in whole.lines().zip(1..) {
        if line.trim().is_empty() {
            continue;
        }
        let checkpoint: Checkpoint = serde_json::from_str(line).map_err(|_| BadCheckpoint::Form(number))?;
        match checkpoint.is_signed() {
            None => return Err(BadCheckpoint::Form(number)),
            Some(false) => return Err(BadCheckpoint::Signature(number)),
            Some(true) => {}
        }
        if checkpoint.chain != chain || checkpoint.key != key {
            return Err(BadCheckpoint::Other(number));
        }
        let hash = unhex(&checkpoint.hash).ok_or(BadCheckpoint::Form(number))?;
        if anchors.insert(checkpoint.seq, hash).is_some_and(|before| before != hash) {
            return Err(BadCheckpoint::Contradiction(number));
        }
    }
    Ok(anchors)
}

/// Bytes as lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or_default();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Hex digits as bytes; `None` unless there are exactly enough.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect::<Option<_>>()?;
    let bytes: Vec<u8> =
        digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, nibble| byte << 4 | nibble)).collect();
    (digits.len() == 2 * N).then(|| bytes.try_into().ok())?
}
