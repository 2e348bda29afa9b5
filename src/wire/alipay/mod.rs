//! The bodies of Alipay's dialects, one file each.

pub mod di;
