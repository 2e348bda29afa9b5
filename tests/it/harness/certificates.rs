//! Certificates made on the spot: an authority, and what it signs. Ed25519, because its keys and signatures need no
//! choices; written out field by field (RFC 5280, RFC 8410), because that is shorter than it looks.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const OCTETS: u8 = 0x04;
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const NAME_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x1e];
const CRL_NUMBER: &[u8] = &[0x55, 0x1d, 0x14];

/// A certificate with its key.
pub struct Issued {
    pub der: Vec<u8>,
    pkcs8: Vec<u8>,
}

/// Who signs certificates.
pub struct Authority {
    name: String,
    pub own: Issued,
}

/// From the year 2020 to this one.
pub fn until(year: u32) -> [String; 2] {
    ["20200101000000Z".to_owned(), format!("{year}0101000000Z")]
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = fresh_key();
        Self::signed(name, &key, (name, &key), &[])
    }

    /// One that may only sign for names below this one.
    pub fn only_for(name: &str, domain: &str) -> Self {
        let permitted = field(SEQUENCE, &[&field(0x82, &[domain.as_bytes()])]);
        let constraints = field(SEQUENCE, &[&field(0xa0, &[&permitted])]);
        let key = fresh_key();
        Self::signed(name, &key, (name, &key), &extension(NAME_CONSTRAINTS, Weight::Critical, &constraints))
    }

    /// One between this one and what it signs.
    pub fn below(&self, name: &str) -> Self {
        Self::signed(name, &fresh_key(), (&self.name, &self.own.pkcs8), &[])
    }

    fn signed(name: &str, key: &[u8], by: (&str, &[u8]), more: &[u8]) -> Self {
        let constraints = field(SEQUENCE, &[&[0x01, 0x01, 0xff]]);
        let extensions = [&extension(BASIC_CONSTRAINTS, Weight::Critical, &constraints), more].concat();
        let der = certificate(name, key, by, &until(2099), &extensions);
        Self { name: name.to_owned(), own: Issued { der, pkcs8: key.to_vec() } }
    }

    /// What it has revoked, as a list in PEM form.
    pub fn revoking(&self, revoked: &[&Issued]) -> String {
        let algorithm = field(SEQUENCE, &[&field(OID, &[ED25519])]);
        let [this, next] = until(2099).map(|text| field(0x18, &[text.as_bytes()]));
        let entry = |one: &&Issued| field(SEQUENCE, &[&serial(&one.pkcs8), &this]);
        let entries: Vec<Vec<u8>> = revoked.iter().map(entry).collect();
        let entries = if entries.is_empty() { Vec::new() } else { field(SEQUENCE, &[&entries.concat()]) };
        let number = extension(CRL_NUMBER, Weight::Usual, &field(0x02, &[&[1]]));
        let extensions = field(0xa0, &[&field(SEQUENCE, &[&number])]);
        let version = field(0x02, &[&[1]]);
        let content =
            field(SEQUENCE, &[&version, &algorithm, &self::name(&self.name), &this, &next, &entries, &extensions]);
        let signature = bits(pair(&self.own.pkcs8).sign(&content).as_ref());
        pem("X509 CRL", &field(SEQUENCE, &[&content, &algorithm, &signature]))
    }

    /// For `localhost` and 127.0.0.1.
    pub fn issue(&self, name: &str, validity: &[String; 2]) -> Issued {
        let key = fresh_key();
        let names = field(SEQUENCE, &[&field(0x82, &[b"localhost"]), &field(0x87, &[&[127, 0, 0, 1]])]);
        let names = extension(SUBJECT_ALT_NAME, Weight::Usual, &names);
        let der = certificate(name, &key, (&self.name, &self.own.pkcs8), validity, &names);
        Issued { der, pkcs8: key }
    }
}

impl Issued {
    pub fn sha256(&self) -> String {
        weighbridge::sign::hmac::sha256_hex(&self.der)
    }

    pub fn cert_pem(&self) -> String {
        pem("CERTIFICATE", &self.der)
    }

    pub fn key_pem(&self) -> String {
        pem("PRIVATE KEY", &self.pkcs8)
    }

    pub fn for_rustls(&self) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        (self.der.clone().into(), PrivateKeyDer::Pkcs8(self.pkcs8.clone().into()))
    }

    /// Writes both files, and tells where.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (cert, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        std::fs::write(&cert, self.cert_pem()).unwrap();
        std::fs::write(&key, self.key_pem()).unwrap();
        (cert, key)
    }
}

fn fresh_key() -> Vec<u8> {
    Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap().as_ref().to_vec()
}

fn pair(pkcs8: &[u8]) -> Ed25519KeyPair {
    Ed25519KeyPair::from_pkcs8(pkcs8).unwrap()
}

fn certificate(
    subject: &str,
    key: &[u8],
    (issuer, issuer_key): (&str, &[u8]),
    [not_before, not_after]: &[String; 2],
    extensions: &[u8],
) -> Vec<u8> {
    let algorithm = field(SEQUENCE, &[&field(OID, &[ED25519])]);
    let moment = |text: &String| field(0x18, &[text.as_bytes()]);
    let public = bits(pair(key).public_key().as_ref());
    let content = field(
        SEQUENCE,
        &[
            &field(0xa0, &[&field(0x02, &[&[2]])]),
            &serial(key),
            &algorithm,
            &name(issuer),
            &field(SEQUENCE, &[&moment(not_before), &moment(not_after)]),
            &name(subject),
            &field(SEQUENCE, &[&algorithm, &public]),
            &field(0xa3, &[&field(SEQUENCE, &[extensions])]),
        ],
    );
    let signature = bits(pair(issuer_key).sign(&content).as_ref());
    field(SEQUENCE, &[&content, &algorithm, &signature])
}

/// Whether who does not understand an extension must give up.
#[derive(PartialEq)]
enum Weight {
    Usual,
    Critical,
}

fn extension(oid: &[u8], weight: Weight, content: &[u8]) -> Vec<u8> {
    let critical: &[u8] = if weight == Weight::Critical { &[0x01, 0x01, 0xff] } else { &[] };
    field(SEQUENCE, &[&field(OID, &[oid]), critical, &field(OCTETS, &[content])])
}

fn serial(key: &[u8]) -> Vec<u8> {
    field(0x02, &[&[1], &pair(key).public_key().as_ref()[..8]])
}

fn name(text: &str) -> Vec<u8> {
    let attribute = field(SEQUENCE, &[&field(OID, &[COMMON_NAME]), &field(0x0c, &[text.as_bytes()])]);
    field(SEQUENCE, &[&field(SET, &[&attribute])])
}

fn bits(content: &[u8]) -> Vec<u8> {
    field(0x03, &[&[0], content])
}

fn field(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut bytes = vec![tag];
    match content.len() {
        short @ 0..=127 => bytes.push(short as u8),
        longer @ 128..=255 => bytes.extend([0x81, longer as u8]),
        long => bytes.extend([&[0x82][..], &(long as u16).to_be_bytes()].concat()),
    }
    bytes.extend(content);
    bytes
}

fn pem(what: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {what}-----\n{}\n-----END {what}-----\n", lines.join("\n"))
}
