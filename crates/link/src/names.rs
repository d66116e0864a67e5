//! Names of other machines.
//!
//! Agent and replicator are linked statically. What `/etc/nsswitch.conf` names (`resolve`, `myhostname`, `sss`, …) glibc would load
//! from the machine at run time, together with the machine's own glibc, into a program that has another one inside: that fails at
//! best and crashes at worst. What needs nothing to be loaded is enough here: `/etc/hosts` and DNS.

/// Sees to it that looking up a name loads nothing. To be called before every lookup; what it does, it does once.
#[cfg(all(target_os = "linux", target_env = "gnu", target_feature = "crt-static"))]
pub(crate) fn load_nothing() {
    use std::sync::Once;

    #[allow(unsafe_code)]
    mod glibc {
        use std::ffi::{c_char, c_int};

        unsafe extern "C" {
            /// glibc's `<nss.h>`: the services of a database in place of those that `/etc/nsswitch.conf` names; 0 when it did so.
            fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
        }

        pub(super) fn hosts_from_files_and_dns() -> bool {
            // SAFETY: both are strings that end with a zero and are valid for ever; glibc only reads them, under its own lock.
            unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) == 0 }
        }
    }

    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if !glibc::hosts_from_files_and_dns() {
            tracing::warn!("names are looked up as /etc/nsswitch.conf says: modules of this machine may be loaded");
        }
    });
}

/// Programs that are linked dynamically have the machine's own glibc.
#[cfg(not(all(target_os = "linux", target_env = "gnu", target_feature = "crt-static")))]
pub(crate) fn load_nothing() {}

#[cfg(test)]
mod tests {
    use std::net::ToSocketAddrs;

    use super::*;

    #[test]
    fn names_are_still_found() {
        load_nothing();
        load_nothing();
        let found: Vec<_> = ("localhost", 1500).to_socket_addrs().unwrap().collect();
        assert!(found.iter().all(|address| address.ip().is_loopback()) && !found.is_empty(), "{found:?}");
    }
}
