//! What the listeners do beyond plain HTTP/1: HTTP/2 with and without TLS, TLS and its certificates, and clients that
//! abuse either (RELIABILITY T1 to T6, P5, the F-series, row 45).
//!
//! Abuse that must be judged from outside, by memory and processor time, is in tests/sdk/test_listener.py.

mod framing;
mod h2;
mod tls;
mod vectors;
