//! Floor 4: one provider, live: its connections, its credentials, its health, and one attempt at it.

pub mod alipay;
pub mod apart;
pub mod attempt;
mod audio;
pub mod body;
pub mod breaker;
pub mod concurrency;
pub mod dial;
mod exchange;
mod form;
mod hold;
mod interim;
pub mod latency;
pub mod limiter;
pub mod live;
mod meaning;
pub mod names;
pub mod openai;
pub mod patience;
pub mod pool;
pub mod retry_after;
pub mod secure;
pub mod send;
pub mod skew;
pub mod stream;
#[cfg(test)]
pub(crate) mod testing;
pub mod token;
mod upload;
