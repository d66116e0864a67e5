//! A link that can be cut: forwards one connection after another, each for a given number of bytes.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

/// Listens until the process ends; its threads end with their connections.
pub(super) struct Forwarder {
    pub(super) address: SocketAddr,
    /// Bytes that went from the agent to the replicator.
    pub(super) forwarded: Arc<AtomicU64>,
}

impl Forwarder {
    /// Forwards to `target`; connection number n is cut after `budgets[n]` bytes from the agent, later ones never.
    pub(super) fn start(target: SocketAddr, budgets: Vec<u64>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let forwarded = Arc::new(AtomicU64::new(0));
        let counter = forwarded.clone();
        thread::spawn(move || {
            let mut budgets = budgets.into_iter();
            for accepted in listener.incoming() {
                let (Ok(agent), Ok(replicator)) = (accepted, TcpStream::connect(target)) else { continue };
                forward(agent, replicator, budgets.next().unwrap_or(u64::MAX), &counter);
            }
        });
        Self { address, forwarded }
    }
}

fn forward(agent: TcpStream, replicator: TcpStream, budget: u64, counter: &Arc<AtomicU64>) {
    let (agent_too, replicator_too) = (agent.try_clone().unwrap(), replicator.try_clone().unwrap());
    let counter = counter.clone();
    thread::spawn(move || copy(agent, replicator, budget, &counter));
    thread::spawn(move || copy(replicator_too, agent_too, u64::MAX, &AtomicU64::new(0)));
}

fn copy(mut from: TcpStream, mut to: TcpStream, budget: u64, counter: &AtomicU64) {
    let mut buffer = vec![0; 64 * 1024];
    let mut left = budget;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = from.read(&mut buffer[..most]).unwrap_or(0);
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            break;
        }
        counter.fetch_add(count as u64, Ordering::Relaxed);
        left -= count as u64;
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
