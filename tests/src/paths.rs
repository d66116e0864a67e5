//! Where things are: the repository, the cache, the binaries under test.

use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};

/// The root of the repository.
#[must_use]
pub fn repository() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// The folder that outlives a run: kernels, images, what was measured of this machine. `REHOST_CACHE` moves it.
#[must_use]
pub fn cache() -> PathBuf {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    variable("REHOST_CACHE").unwrap_or_else(|| {
        variable("XDG_CACHE_HOME")
            .or_else(|| variable("HOME").map(|home| home.join(".cache")))
            .unwrap_or_else(std::env::temp_dir)
            .join("rehost")
    })
}

/// A binary of the workspace that was built in the profile of the running test or program.
///
/// # Errors
/// [`Error::Unexpected`] with the command that builds it, when it is not there.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context(|| "find the running program".to_owned())?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| Error::Unexpected(format!("{name} is not built; run `cargo build -p {name}`")))
}
