//! The proxy's neighbours: the load generator and the null upstream, on one thread that need not sleep.
//!
//! Who writes to a process that sleeps pays for waking it: an interrupt to the other core, on a virtual machine with the
//! hypervisor's help, several microseconds in all. The slower a proxy, the more its neighbours sleep, and between two
//! machines it would not wake them at all. So in closed loops this thread never sleeps, and a proxy's processor time is
//! its own work. At constant rates it sleeps as usual.

use std::net::{SocketAddr, TcpListener};

use tokio::runtime::Runtime;
use tokio::task::{LocalSet, spawn_local, yield_now};

use crate::servers;

/// The thread's runtime, with the null upstream on it; what it does, it does while something is run here.
pub struct Peer {
    runtime: Runtime,
    local: LocalSet,
    address: SocketAddr,
}

impl Peer {
    /// Opens the upstream.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let local = LocalSet::new();
        let opened = {
            let _entered = runtime.enter();
            tokio::net::TcpListener::from_std(listener).unwrap()
        };
        local.spawn_local(servers::null(opened));
        Self { runtime, local, address }
    }

    /// Where the null upstream listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs `load`.
    pub fn run<T>(&self, load: impl Future<Output = T>) -> T {
        self.local.block_on(&self.runtime, load)
    }

    /// Runs `load` and does not sleep meanwhile.
    pub fn run_awake<T>(&self, load: impl Future<Output = T>) -> T {
        self.run(async {
            let spinning = spawn_local(async {
                loop {
                    yield_now().await;
                }
            });
            let done = load.await;
            spinning.abort();
            done
        })
    }
}
