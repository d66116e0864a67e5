//! Faults that are planted on purpose, to show that the fault harness catches them. Only with the feature `planted`; named
//! by the environment variable `REHOST_PLANTED`, which is read once.

/// Whether this fault is planted.
#[cfg(feature = "planted")]
#[must_use]
pub(crate) fn is(name: &str) -> bool {
    static PLANTED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    PLANTED.get_or_init(|| std::env::var("REHOST_PLANTED").ok()).as_deref() == Some(name)
}

/// No fault is planted.
#[cfg(not(feature = "planted"))]
#[must_use]
pub(crate) fn is(_name: &str) -> bool {
    false
}
