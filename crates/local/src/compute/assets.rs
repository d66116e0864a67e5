//! What conversion machines are made of: Debian's cloud kernel and its modules, taken from Debian's package without installing
//! it, and kept for all regions of the user.
//!
//! ```text
//! ~/.cache/rehost/conversion/linux-image-6.1.0-…-cloud-amd64/boot/vmlinuz-…, lib/modules/…
//! ```
//! On a host without apt the same can be put there by hand.

use std::path::{Path, PathBuf};
use std::process::Command;

use rehost_control::PortError;
use rehost_control::ports::PortResult;

use super::files;

/// Depends on the newest kernel for virtual machines.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// What a conversion machine needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConversionAssets {
    /// `vmlinuz-…`.
    pub kernel: PathBuf,
    /// The unpacked package: the kernel's modules are below.
    pub package: PathBuf,
}

/// Where the assets are kept by default: `conversion` in `$REHOST_CACHE`, `$XDG_CACHE_HOME/rehost` or `~/.cache/rehost`,
/// whichever is set first.
#[must_use]
pub fn default_cache() -> PathBuf {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || absolute("HOME").unwrap_or_else(|| PathBuf::from("/root")).join(".cache");
    let own = || absolute("XDG_CACHE_HOME").unwrap_or_else(home).join("rehost");
    absolute("REHOST_CACHE").unwrap_or_else(own).join("conversion")
}

/// Finds the assets in `cache`, or fetches them with apt (some 30 MB) when there are none.
///
/// # Errors
/// Says what is missing on this host and how to get it.
pub fn prepare(cache: &Path) -> PortResult<ConversionAssets> {
    if let Some(assets) = find(cache)? {
        return Ok(assets);
    }
    fetch(cache)?;
    find(cache)?.ok_or_else(|| {
        PortError::invalid(format!("the package {META_PACKAGE} holds no kernel; look into {}", cache.display()))
    })
}

/// The newest assets in `cache`; `None` when there are none.
pub(super) fn find(cache: &Path) -> PortResult<Option<ConversionAssets>> {
    let mut packages = files::names(cache)?;
    packages.retain(|name| !name.starts_with('.'));
    packages.sort_by_key(|name| version_key(name));
    Ok(packages.iter().rev().find_map(|name| in_package(&cache.join(name))))
}

fn in_package(package: &Path) -> Option<ConversionAssets> {
    let boot = package.join("boot");
    let kernel = files::names(&boot).ok()?.into_iter().find(|name| name.starts_with("vmlinuz"))?;
    let modules = package.join("lib/modules").is_dir() || package.join("usr/lib/modules").is_dir();
    modules.then(|| ConversionAssets { kernel: boot.join(kernel), package: package.to_owned() })
}

/// Orders names by the numbers in them: 6.1.0-9 before 6.1.0-10.
fn version_key(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

fn fetch(cache: &Path) -> PortResult<()> {
    files::make_directory(cache)?;
    let package = versioned_package()?;
    tracing::info!(package, "fetching the conversion machine's kernel");
    let work = cache.join(format!(".{package}.{}", std::process::id()));
    files::remove_tree(&work)?;
    let fetched = fetch_into(&work, &package).and_then(|unpacked| publish(&unpacked, &cache.join(&package)));
    // Whatever happened, nothing half-done stays.
    files::remove_tree(&work)?;
    fetched
}

fn fetch_into(work: &Path, package: &str) -> PortResult<PathBuf> {
    let unpacked = work.join("unpacked");
    files::make_directory(&unpacked)?;
    run(Command::new("apt-get").args(["-q", "-o", "DPkg::Lock::Timeout=300", "download", package]).current_dir(work))?;
    let archive = files::names(work)?.into_iter().find(|name| name.ends_with(".deb"));
    let archive = archive.ok_or_else(|| PortError::unavailable(format!("apt-get left no file of {package}")))?;
    run(Command::new("dpkg-deb").arg("-x").arg(work.join(archive)).arg(&unpacked))?;
    Ok(unpacked)
}

/// Another process may have been faster: its copy is as good.
fn publish(unpacked: &Path, target: &Path) -> PortResult<()> {
    match std::fs::rename(unpacked, target) {
        Ok(()) => files::sync_parent(target),
        Err(_) if in_package(target).is_some() => Ok(()),
        Err(error) => Err(files::io_error("make", target, &error)),
    }
}

/// The package on which the meta package depends, such as `linux-image-6.1.0-42-cloud-amd64`.
fn versioned_package() -> PortResult<String> {
    let text = run(Command::new("apt-cache").args(["depends", "--important", META_PACKAGE]))?;
    let package = text.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).map(str::trim);
    let plain = |name: &&str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.+~".contains(&b));
    package.filter(plain).map(str::to_owned).ok_or_else(|| {
        PortError::invalid(format!(
            "apt does not know the package {META_PACKAGE}: run `apt-get update` as root; {HELP}"
        ))
    })
}

const HELP: &str = "on a host that is not Debian, unpack Debian's package linux-image-…-cloud-amd64 into a folder of \
                    ~/.cache/rehost/conversion";

fn run(command: &mut Command) -> PortResult<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.env("LC_ALL", "C").stdin(std::process::Stdio::null()).output();
    let output = output.map_err(|e| {
        PortError::invalid(format!(
            "cannot run {program}, with which the conversion machine's kernel is fetched: {e}; {HELP}"
        ))
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let message = format!(
        "{program} failed while it fetched the conversion machine's kernel: {said}; run `apt-get update` as root"
    );
    Err(PortError::unavailable(format!("{message}; {HELP}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_whole_package_is_found() {
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(find(cache.path()).unwrap(), None);
        for (name, whole) in [("linux-6.1.0-9", true), ("linux-6.1.0-10", true), ("linux-6.1.0-11", false)] {
            let package = cache.path().join(name);
            files::make_directory(&package.join("boot")).unwrap();
            std::fs::write(package.join("boot/vmlinuz-x"), "").unwrap();
            if whole {
                files::make_directory(&package.join("lib/modules")).unwrap();
            }
        }
        files::make_directory(&cache.path().join(".linux-6.1.0-99.1/boot")).unwrap();
        let found = find(cache.path()).unwrap().unwrap();
        assert_eq!(found.package, cache.path().join("linux-6.1.0-10"));
    }
}
