//! Keys: one file with the root of all, and one key for each person, wrapped under it.
//!
//! Everything else is derived from the 32 bytes of `audit.key`, each use under a name of its own. A person's key is random
//! and lies wrapped in the record's own file; destroying it there is what forgets the person. Whoever has both files can
//! read everything: the point of the keys is to forget, not to hide from the operator.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::signature::{Ed25519KeyPair, KeyPair};
use zeroize::Zeroizing;

use super::chain::{hex, unhex};
use crate::sign::hmac::mac;

/// The name of the file.
pub const KEY_FILE: &str = "audit.key";

/// The name of a person's key.
pub type SubjectId = [u8; 16];

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or made.
    #[error("{KEY_FILE} cannot be read or made in the data folder")]
    Io(#[from] io::Error),
    /// The file is not one of ours.
    #[error("{KEY_FILE} is not 64 hex digits; put the right file back")]
    Form,
    /// No random bytes, or a key that is none.
    #[error("the system gave no random bytes")]
    Random,
}

/// What is derived from the file.
pub struct Keys {
    wrapping: Zeroizing<[u8; 32]>,
    naming: Zeroizing<[u8; 32]>,
    signer: Ed25519KeyPair,
}

impl Keys {
    /// Reads the file.
    ///
    /// # Errors
    /// [`KeyError`]; [`io::ErrorKind::NotFound`] in it if there is none.
    pub fn read(folder: &Path) -> Result<Self, KeyError> {
        let mut text = Zeroizing::new(String::new());
        File::open(folder.join(KEY_FILE))?.take(128).read_to_string(&mut text)?;
        let root = Zeroizing::new(unhex::<32>(text.trim_end()).ok_or(KeyError::Form)?);
        Self::of(&root)
    }

    /// Makes the file, readable for its owner alone and whole or not at all, and reads it.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn make(folder: &Path) -> Result<Self, KeyError> {
        let text = Zeroizing::new(format!("{}\n", hex(&*random::<32>()?)));
        let beside = folder.join(format!("{KEY_FILE}.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        // A link, not a rename: if another process was faster, its file stays.
        let linked = fs::hard_link(&beside, folder.join(KEY_FILE));
        fs::remove_file(&beside)?;
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => File::open(folder)?.sync_all()?,
        }
        Self::read(folder)
    }

    fn of(root: &[u8; 32]) -> Result<Self, KeyError> {
        let derived = |name: &[u8]| Zeroizing::new(mac(root, &[b"weighbridge audit key 1\n", name]));
        let signer = Ed25519KeyPair::from_seed_unchecked(&*derived(b"sign")).map_err(|_| KeyError::Random)?;
        Ok(Self { wrapping: derived(b"wrap"), naming: derived(b"name"), signer })
    }

    /// What signs checkpoints.
    pub fn signer(&self) -> &Ed25519KeyPair {
        &self.signer
    }

    /// Who signs checkpoints.
    pub fn public(&self) -> [u8; 32] {
        self.signer.public_key().as_ref().try_into().unwrap_or_default()
    }

    /// Where a person's key is found: without the file nobody can tell whose it is.
    pub fn lookup(&self, tenant: &str, user: &str) -> [u8; 32] {
        let length = u64::try_from(tenant.len()).unwrap_or(u64::MAX).to_be_bytes();
        mac(&*self.naming, &[&length, tenant.as_bytes(), user.as_bytes()])
    }

    /// A fresh key for a person, and the same wrapped.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn fresh_subject(&self) -> Result<(SubjectId, SubjectKey, Vec<u8>), KeyError> {
        let (id, key) = (*random::<16>()?, SubjectKey(random::<32>()?));
        let wrapped = seal(&self.wrapping, &id, &*key.0)?;
        Ok((id, key, wrapped))
    }

    /// A person's key; `None` if it was not wrapped by us for that name.
    pub fn subject(&self, id: &SubjectId, wrapped: &[u8]) -> Option<SubjectKey> {
        let key = open(&self.wrapping, id, wrapped)?;
        Some(SubjectKey(Zeroizing::new(key.as_slice().try_into().ok()?)))
    }
}

/// One person's key, wiped when dropped.
pub struct SubjectKey(Zeroizing<[u8; 32]>);

impl SubjectKey {
    /// Seals `plain` for the record of that name: sealed bytes moved to another record do not open.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn seal(&self, record: &[u8], plain: &[u8]) -> Result<Vec<u8>, KeyError> {
        seal(&self.0, record, plain)
    }

    /// What was sealed for the record of that name.
    pub fn open(&self, record: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        open(&self.0, record, sealed)
    }
}

fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, KeyError> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(&mut *bytes).map_err(|_| KeyError::Random)?;
    Ok(bytes)
}

/// A nonce, the ciphertext, a tag. Nonces are random: no key seals anywhere near 2^32 times.
fn seal(key: &[u8; 32], name: &[u8], plain: &[u8]) -> Result<Vec<u8>, KeyError> {
    let nonce = *random::<NONCE_LEN>()?;
    let mut sealed = plain.to_vec();
    let key = UnboundKey::new(&AES_256_GCM, key).map(LessSafeKey::new).map_err(|_| KeyError::Random)?;
    let tag = key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(name), &mut sealed);
    tag.map_err(|_| KeyError::Random)?;
    Ok([nonce.as_slice(), &sealed].concat())
}

fn open(key: &[u8; 32], name: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
    let key = UnboundKey::new(&AES_256_GCM, key).map(LessSafeKey::new).ok()?;
    let mut plain = Zeroizing::new(sealed.to_vec());
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let length = key.open_in_place(nonce, Aad::from(name), &mut plain).ok()?.len();
    plain.truncate(length);
    Some(plain)
}
