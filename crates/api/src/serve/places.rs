//! Places for connections: how many there may be, and whose.
//!
//! A peer that has proved nothing yet takes a place all the same, so no single address may take them all, and some are kept for
//! peers on this machine: the operator's commands get in whatever comes from elsewhere.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many connections there may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// All of them.
    pub(super) all: usize,
    /// Of those, the places that peers from elsewhere cannot take.
    pub(super) for_loopback: usize,
    /// What one address from elsewhere may have. The servers of a whole site may come from one.
    pub(super) per_address: usize,
}

/// The places of one listener.
pub(super) struct Places {
    bounds: Bounds,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by_address: BTreeMap<IpAddr, usize>,
}

/// A place that is taken, until it is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Places {
    pub(super) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { bounds, taken: Mutex::default() })
    }

    /// A place for a peer, if there is one for it.
    pub(super) fn take(self: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        let address = counted_as(peer);
        let mut taken = self.taken();
        let own = taken.by_address.get(&address).copied().unwrap_or_default();
        let Bounds { all, for_loopback, per_address } = self.bounds;
        let fits = match address.is_loopback() {
            true => taken.all < all,
            false => taken.all < all.saturating_sub(for_loopback) && own < per_address,
        };
        if !fits {
            return None;
        }
        taken.all += 1;
        taken.by_address.insert(address, own + 1);
        Some(Place { places: Arc::clone(self), address })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.all -= 1;
        let left = taken.by_address.remove(&self.address).unwrap_or_default().saturating_sub(1);
        if left > 0 {
            taken.by_address.insert(self.address, left);
        }
    }
}

/// Whoever has one IPv6 address commonly has its whole /64 network.
fn counted_as(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Arc<Places> {
        Places::new(Bounds { all: 6, for_loopback: 2, per_address: 3 })
    }

    fn fill(places: &Arc<Places>, peer: &str) -> Vec<Place> {
        let peer = peer.parse().unwrap();
        std::iter::from_fn(|| places.take(peer)).take(100).collect()
    }

    #[test]
    fn one_address_does_not_take_all_places() {
        let places = places();
        let first = fill(&places, "192.0.2.1");
        assert_eq!(first.len(), 3);
        assert_eq!(fill(&places, "::ffff:192.0.2.1").len(), 0, "the same peer, written in another way");
        assert_eq!(fill(&places, "192.0.2.2").len(), 1);
        drop(fill(&places, "192.0.2.9"));
        drop(first);
        let network = fill(&places, "2001:db8::1");
        assert_eq!((network.len(), fill(&places, "2001:db8::2:3").len()), (3, 0));
    }

    #[test]
    fn peers_on_this_machine_get_in_when_others_have_taken_what_they_may() {
        let places = places();
        let (_first, second) = (fill(&places, "192.0.2.1"), fill(&places, "192.0.2.2"));
        assert_eq!(second.len(), 1);
        assert_eq!(fill(&places, "127.0.0.1").len(), 2);
        assert_eq!(fill(&places, "::1").len(), 2);
    }

    #[test]
    fn a_place_is_free_again_when_its_connection_ends() {
        let places = places();
        drop(fill(&places, "192.0.2.1"));
        let taken = places.taken();
        assert!(taken.all == 0 && taken.by_address.is_empty());
    }
}
