//! Builds the conversion machine's initramfs: the converter as `/init`, and the few kernel modules that it loads by itself.
//!
//! ```text
//! /init            the converter, a static program
//! /dev/console     for its output
//! /modules/order   file names, one a line, in the order in which they are loaded
//! /modules/*.ko    fat, vfat and two character sets: the EFI system partition
//! ```
//!
//! Everything else that the machine needs (NVMe, ext4, serial lines, partition tables) is built into Debian's cloud kernel. The initramfs
//! depends on the converter and the kernel alone, not on what is converted, so it can be kept.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cpio::{self, CpioError, Entry, Kind};

/// The kernel modules, in load order, without `.ko`.
pub const MODULES: [&str; 4] = ["fat", "vfat", "nls_cp437", "nls_ascii"];

/// Where the modules lie in the initramfs.
pub(crate) const MODULE_DIRECTORY: &str = "/modules";

/// Why no initramfs could be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{0} is dynamically linked and cannot be the first program of a machine: build rehost-converter as a static binary"
    )]
    NotStatic(PathBuf),
    #[error(
        "no file below {directory} is a kernel module {module}.ko: unpack Debian's package linux-image-…-cloud-amd64 there"
    )]
    NoModule { module: &'static str, directory: PathBuf },
    #[error("{0} is compressed: unpack it, the conversion machine loads plain modules only")]
    Compressed(PathBuf),
    #[error(transparent)]
    Cpio(#[from] CpioError),
}

/// The conversion machine's initramfs (an uncompressed newc archive, some MB).
///
/// `converter` is the static `rehost-converter`; `kernel_package` the directory into which the kernel's Debian package was
/// unpacked (`dpkg -x`), or any directory with its modules somewhere below.
///
/// # Errors
/// [`BuildError`] says which file is missing or unfit.
pub fn build(converter: &Path, kernel_package: &Path) -> Result<Vec<u8>, BuildError> {
    let program = read(converter)?;
    if names_an_interpreter(&program) {
        return Err(BuildError::NotStatic(converter.to_owned()));
    }
    let mut entries = vec![
        Entry::directory("dev"),
        Entry { path: "dev/console".into(), mode: 0o600, kind: Kind::CharacterDevice { major: 5, minor: 1 } },
        Entry::file("init", 0o755, program),
        Entry::directory("modules"),
    ];
    let found = module_files(kernel_package)?;
    for module in MODULES {
        let path = found.get(module).ok_or_else(|| no_module(module, kernel_package))?;
        entries.push(Entry::file(format!("modules/{module}.ko"), 0o644, read(path)?));
    }
    let order: String = MODULES.iter().map(|module| format!("{module}.ko\n")).collect();
    entries.push(Entry::file("modules/order", 0o644, order.into_bytes()));
    Ok(cpio::write(&entries)?)
}

fn no_module(module: &'static str, directory: &Path) -> BuildError {
    BuildError::NoModule { module, directory: directory.to_owned() }
}

fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    fs::read(path).map_err(|source| BuildError::Read { path: path.to_owned(), source })
}

/// The wanted module files somewhere below `directory`, by module name.
fn module_files(directory: &Path) -> Result<BTreeMap<&'static str, PathBuf>, BuildError> {
    let mut found = BTreeMap::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        let failed = |source| BuildError::Read { path: directory.clone(), source };
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_dir() {
                pending.push(entry.path());
            } else if let Some(module) = wanted(&entry.file_name().to_string_lossy()) {
                if entry.path().extension().is_some_and(|extension| extension != "ko") {
                    return Err(BuildError::Compressed(entry.path()));
                }
                found.insert(module, entry.path());
            }
        }
    }
    Ok(found)
}

fn wanted(file: &str) -> Option<&'static str> {
    MODULES.into_iter().find(|module| {
        file.strip_prefix(module).is_some_and(|rest| matches!(rest, ".ko" | ".ko.xz" | ".ko.zst" | ".ko.gz"))
    })
}

/// Whether an ELF program asks for a dynamic loader (a program header of type `PT_INTERP`).
fn names_an_interpreter(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let (Some(offset), Some(size), Some(count)) = (u64_at(elf, 0x20), u16_at(elf, 0x36), u16_at(elf, 0x38)) else {
        return false;
    };
    let Ok(offset) = usize::try_from(offset) else { return false };
    elf.starts_with(b"\x7fELF")
        && (0..usize::from(count)).any(|index| {
            let at = offset.checked_add(index * usize::from(size));
            at.and_then(|at| elf.get(at..)?.first_chunk()).map(|bytes| u32::from_le_bytes(*bytes)) == Some(PT_INTERP)
        })
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel_package() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let modules = directory.path().join("lib/modules/6.1.0/kernel/fs");
        fs::create_dir_all(&modules).unwrap();
        for module in MODULES {
            fs::write(modules.join(format!("{module}.ko")), module).unwrap();
        }
        fs::write(modules.join("fatal.ko"), "no").unwrap();
        directory
    }

    #[test]
    fn has_the_converter_and_its_modules() {
        let package = kernel_package();
        let program = package.path().join("rehost-converter");
        fs::write(&program, "a program").unwrap();
        let (entries, _) = cpio::read(&build(&program, package.path()).unwrap()).unwrap();
        let names: Vec<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(names[..5], ["dev", "dev/console", "init", "modules", "modules/fat.ko"]);
        let order = entries.iter().find(|entry| entry.path == "modules/order").unwrap();
        assert_eq!(order.kind, Kind::File(b"fat.ko\nvfat.ko\nnls_cp437.ko\nnls_ascii.ko\n".to_vec()));
    }

    #[test]
    fn missing_and_compressed_modules_are_named() {
        let package = kernel_package();
        let program = package.path().join("rehost-converter");
        fs::write(&program, "a program").unwrap();
        let fs_modules = package.path().join("lib/modules/6.1.0/kernel/fs");
        fs::remove_file(fs_modules.join("vfat.ko")).unwrap();
        assert!(matches!(build(&program, package.path()), Err(BuildError::NoModule { module: "vfat", .. })));
        fs::write(fs_modules.join("vfat.ko.xz"), "").unwrap();
        assert!(matches!(build(&program, package.path()), Err(BuildError::Compressed(_))));
    }

    #[test]
    fn a_dynamic_program_is_refused() {
        let mut elf = vec![0u8; 0x40 + 56];
        elf[..4].copy_from_slice(b"\x7fELF");
        elf[0x20] = 0x40;
        elf[0x36] = 56;
        elf[0x38] = 1;
        assert!(!names_an_interpreter(&elf));
        elf[0x40] = 3;
        assert!(names_an_interpreter(&elf));
        assert!(!names_an_interpreter(&elf[..0x30]));
    }
}
