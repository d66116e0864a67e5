//! Where things are: the repository, the cache, the binaries under test.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::error::{Context, Error, Result};

/// The root of the repository: that of the package under test, or of the working directory. Build output is shared between
/// clones, so that what was compiled in may be the place of another one.
#[must_use]
pub fn repository() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let places = package.into_iter().chain(std::env::current_dir());
        let found = places
            .flat_map(|place| place.ancestors().map(Path::to_owned).collect::<Vec<_>>())
            .find(|folder| is_repository(folder));
        found.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
    })
}

fn is_repository(folder: &Path) -> bool {
    folder.join("statemachine").is_dir() && folder.join("tests/images").is_dir()
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
