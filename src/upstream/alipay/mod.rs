//! The Alipay dialects. One file each; today the HMAC-signed Decision Intelligence one.

pub mod di;
