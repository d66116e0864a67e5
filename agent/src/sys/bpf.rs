//! bpf(2), as far as a tracker needs it: maps, programs on kernel tracepoints, pins.

use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr,
};

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE: libc::c_int = 2;
const MAP_DELETE: libc::c_int = 3;
const PROG_LOAD: libc::c_int = 5;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const MAP_LOOKUP_AND_DELETE: libc::c_int = 21;
const MAP_LOOKUP_BATCH: libc::c_int = 24;
const MAP_LOOKUP_AND_DELETE_BATCH: libc::c_int = 25;

const PROG_TYPE_TRACING: u32 = 26;
const ATTACH_TYPE_TRACE_RAW_TP: u32 = 23;

/// `BPF_NOEXIST`: only if there is no such entry.
const UNLESS_THERE: u64 = 1;

/// The kernel lets GPL-compatible programs alone read its structures; this is one of the names it knows as such.
const LICENSE: &CStr = c"Dual MIT/GPL";

/// What the verifier says is kept up to this length.
const LOG_BYTES: usize = 64 * 1024;

/// What a map is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MapShape {
    pub(crate) kind: MapKind,
    /// Bytes of one key.
    pub(crate) key: u32,
    /// Bytes of one value.
    pub(crate) value: u32,
    pub(crate) entries: u32,
}

/// The kinds of maps in use, with the kernel's number and flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MapKind {
    /// An array that user space maps into its memory.
    SharedArray,
    /// A hash table, allocated beforehand.
    Hash,
}

impl MapKind {
    fn number(self) -> u32 {
        match self {
            Self::Hash => 1,
            Self::SharedArray => 2,
        }
    }

    fn flags(self) -> u32 {
        const MMAPABLE: u32 = 1 << 10;
        match self {
            Self::Hash => 0,
            Self::SharedArray => MMAPABLE,
        }
    }
}

/// One instruction, as the kernel reads it.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction(pub(crate) [u8; 8]);

/// Makes a map. Its name (at most 15 letters, digits, `_`) is what tools show.
///
/// # Errors
/// No right, no memory (before 5.11 that is the locked-memory limit), or a kernel without such maps.
pub(crate) fn create_map(name: &str, shape: MapShape) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        kind: u32,
        key: u32,
        value: u32,
        entries: u32,
        flags: u32,
        inner_map: u32,
        numa_node: u32,
        name: [u8; 16],
    }
    let MapShape { kind, key, value, entries } = shape;
    let (flags, kind) = (kind.flags(), kind.number());
    let mut attributes =
        Attributes { kind, key, value, entries, flags, inner_map: 0, numa_node: 0, name: object_name(name) };
    // SAFETY: the attributes of MAP_CREATE hold no pointers.
    let fd = unsafe { bpf(MAP_CREATE, &mut attributes) }?;
    // SAFETY: MAP_CREATE returned a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The value in a hash table of places on a disk.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) first_sector: u64,
    pub(crate) sectors: u64,
}

/// What a hash table from addresses to places holds. What is put in or removed meanwhile may be missing; what stays is not.
///
/// # Errors
/// It is not such a table.
pub(crate) fn places(map: BorrowedFd<'_>) -> io::Result<Vec<(u64, Place)>> {
    let mut found = Vec::new();
    batches(map, MAP_LOOKUP_BATCH, &mut found)?;
    Ok(found)
}

/// Moves what a hash table from addresses to places holds to `taken`: each entry is what it was when it was removed. What is
/// put in meanwhile may stay.
///
/// # Errors
/// It is not such a table; what was removed is in `taken` all the same.
pub(crate) fn take_places(map: BorrowedFd<'_>, taken: &mut Vec<(u64, Place)>) -> io::Result<()> {
    batches(map, MAP_LOOKUP_AND_DELETE_BATCH, taken)
}

fn batches(map: BorrowedFd<'_>, command: libc::c_int, found: &mut Vec<(u64, Place)>) -> io::Result<()> {
    const BATCH: usize = 1024;
    #[repr(C)]
    struct Attributes {
        from: u64,
        to: u64,
        keys: u64,
        values: u64,
        count: u32,
        map: RawFd,
        flags: [u64; 2],
    }
    // Where the table goes on: the kernel's business.
    let (mut cursor, mut is_first) = (0_u32, true);
    let mut retries = 1000;
    loop {
        let (mut keys, mut values) = ([0_u64; BATCH], [Place::default(); BATCH]);
        let from = if is_first { 0 } else { address(&raw const cursor) };
        let mut attributes = Attributes {
            from,
            to: address(&raw mut cursor),
            keys: address(keys.as_mut_ptr()),
            values: address(values.as_mut_ptr()),
            count: length(BATCH)?,
            map: map.as_raw_fd(),
            flags: [0; 2],
        };
        // SAFETY: keys and values have room for as many entries as `count` says, of the sizes that this is called for;
        // the cursor has the four bytes that a hash table's has.
        let result = unsafe { bpf(command, &mut attributes) };
        let kind = result.as_ref().err().map(io::Error::kind);
        if matches!(kind, None | Some(io::ErrorKind::NotFound | io::ErrorKind::ResourceBusy)) {
            found.extend(keys.into_iter().zip(values).take(attributes.count as usize));
        }
        match kind {
            Some(io::ErrorKind::NotFound) => return Ok(()),
            // Somebody else has that part of the table at this moment; it goes on from there.
            Some(io::ErrorKind::ResourceBusy) if retries > 0 => retries -= 1,
            _ => drop(result?),
        }
        is_first = false;
    }
}

/// Removes an entry of a hash table from addresses.
///
/// # Errors
/// There is none.
pub(crate) fn remove_place(map: BorrowedFd<'_>, key: u64) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        map: RawFd,
        padding: u32,
        key: u64,
    }
    let mut attributes = Attributes { map: map.as_raw_fd(), padding: 0, key: address(&raw const key) };
    // SAFETY: the key lives until the call returns and is as long as the table's keys.
    unsafe { bpf(MAP_DELETE, &mut attributes) }.map(drop)
}

/// What calls on one entry of a table take.
#[repr(C)]
struct EntryAttributes {
    map: RawFd,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Removes an entry of a hash table from addresses to places; what it was in that moment.
///
/// # Errors
/// There is none, or the kernel is older than 5.14, which cannot do both at once.
pub(crate) fn take_place(map: BorrowedFd<'_>, key: u64) -> io::Result<Place> {
    let mut place = Place::default();
    let (key, value) = (address(&raw const key), address(&raw mut place));
    let mut attributes = EntryAttributes { map: map.as_raw_fd(), padding: 0, key, value, flags: 0 };
    // SAFETY: key and value live until the call returns and are as long as the table's.
    unsafe { bpf(MAP_LOOKUP_AND_DELETE, &mut attributes) }?;
    Ok(place)
}

/// Puts an entry into a hash table from addresses to places.
///
/// # Errors
/// There is one.
pub(crate) fn put_place(map: BorrowedFd<'_>, key: u64, place: Place) -> io::Result<()> {
    let (key, value) = (address(&raw const key), address(&raw const place));
    let mut attributes = EntryAttributes { map: map.as_raw_fd(), padding: 0, key, value, flags: UNLESS_THERE };
    // SAFETY: key and value live until the call returns and are as long as the table's.
    unsafe { bpf(MAP_UPDATE, &mut attributes) }.map(drop)
}

/// Why a program was refused.
#[derive(Debug, thiserror::Error)]
#[error("the kernel refuses the program {name}: {source}{}", if .log.is_empty() { String::new() } else { format!("; {log}") })]
pub(crate) struct LoadError {
    name: String,
    source: io::Error,
    /// The end of what the verifier said.
    log: String,
}

/// Loads a program for the kernel tracepoint whose `btf_trace_…` type has this number in the kernel's BTF.
///
/// # Errors
/// No right, or the verifier refuses it; the error has the end of its log.
pub(crate) fn load_program(name: &str, code: &[Instruction], attach_to: u32) -> Result<OwnedFd, LoadError> {
    // The log costs time and is of use after a failure alone.
    try_load(name, code, attach_to, &mut []).or_else(|source| {
        let mut log = vec![0; LOG_BYTES];
        try_load(name, code, attach_to, &mut log).map_err(|_| {
            let (name, log) = (name.to_owned(), end_of_log(&log));
            LoadError { name, source, log }
        })
    })
}

fn try_load(name: &str, code: &[Instruction], attach_to: u32, log: &mut [u8]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        kind: u32,
        instructions: u32,
        code: u64,
        license: u64,
        log_level: u32,
        log_bytes: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        attach_type: u32,
        /// Debug information of the program itself: none.
        debug_information: [u32; 9],
        attach_btf_id: u32,
        attach_program: u32,
        padding: u32,
    }
    let mut attributes = Attributes {
        kind: PROG_TYPE_TRACING,
        instructions: length(code.len())?,
        code: address(code.as_ptr()),
        license: address(LICENSE.as_ptr()),
        log_level: u32::from(!log.is_empty()),
        log_bytes: length(log.len())?,
        log: if log.is_empty() { 0 } else { address(log.as_mut_ptr()) },
        kernel_version: 0,
        flags: 0,
        name: object_name(name),
        interface: 0,
        attach_type: ATTACH_TYPE_TRACE_RAW_TP,
        debug_information: [0; 9],
        attach_btf_id: attach_to,
        attach_program: 0,
        padding: 0,
    };
    // SAFETY: code, licence and log outlive the call, and their lengths are those of the slices; the log is ours to write.
    let fd = unsafe { bpf(PROG_LOAD, &mut attributes) }?;
    // SAFETY: PROG_LOAD returned a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a loaded program. It stays attached until the link is closed and, where it is pinned, unpinned.
///
/// # Errors
/// The tracepoint is of a module that went, or no memory.
pub(crate) fn attach(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        /// None: the program was loaded for one tracepoint.
        name: u64,
        program: RawFd,
        padding: u32,
    }
    let mut attributes = Attributes { name: 0, program: program.as_raw_fd(), padding: 0 };
    // SAFETY: the only pointer is null, which means "as loaded".
    let fd = unsafe { bpf(RAW_TRACEPOINT_OPEN, &mut attributes) }?;
    // SAFETY: RAW_TRACEPOINT_OPEN returned a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[repr(C)]
struct PinAttributes {
    path: u64,
    object: RawFd,
    flags: u32,
}

/// Gives a map or a link a name in bpffs, so that it outlives the process.
///
/// # Errors
/// The path is not in a bpffs, or exists.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attributes = PinAttributes { path: address(path.as_ptr()), object: object.as_raw_fd(), flags: 0 };
    // SAFETY: the path is a C string that outlives the call.
    unsafe { bpf(OBJ_PIN, &mut attributes) }.map(drop)
}

/// Opens what is pinned.
///
/// # Errors
/// Nothing is.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attributes = PinAttributes { path: address(path.as_ptr()), object: 0, flags: 0 };
    // SAFETY: the path is a C string that outlives the call.
    let fd = unsafe { bpf(OBJ_GET, &mut attributes) }?;
    // SAFETY: OBJ_GET returned a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the map has this shape.
///
/// # Errors
/// It is not a map.
pub(crate) fn has_shape(map: BorrowedFd<'_>, shape: MapShape) -> io::Result<bool> {
    #[repr(C)]
    #[derive(Default)]
    struct Information {
        kind: u32,
        id: u32,
        key: u32,
        value: u32,
        entries: u32,
        flags: u32,
    }
    let mut found = Information::default();
    // SAFETY: `Information` is the beginning of the kernel's bpf_map_info: plain integers.
    unsafe { information(map, &mut found) }?;
    let MapShape { kind, key, value, entries } = shape;
    Ok((found.kind, found.key, found.value, found.entries, found.flags)
        == (kind.number(), key, value, entries, kind.flags()))
}

/// The number of the program that a link attaches.
///
/// # Errors
/// It is not a link.
pub(crate) fn linked_program(link: BorrowedFd<'_>) -> io::Result<u32> {
    #[repr(C)]
    #[derive(Default)]
    struct Information {
        kind: u32,
        id: u32,
        program: u32,
        padding: u32,
    }
    let mut found = Information::default();
    // SAFETY: `Information` is the beginning of the kernel's bpf_link_info: plain integers.
    unsafe { information(link, &mut found) }?;
    Ok(found.program)
}

/// Opens a program by its number.
///
/// # Errors
/// It is gone.
pub(crate) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        id: u32,
        next: u32,
        flags: u32,
    }
    let mut attributes = Attributes { id, next: 0, flags: 0 };
    // SAFETY: the attributes of PROG_GET_FD_BY_ID hold no pointers.
    let fd = unsafe { bpf(PROG_GET_FD_BY_ID, &mut attributes) }?;
    // SAFETY: PROG_GET_FD_BY_ID returned a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// How often a program was not run since it was running already on that CPU. Kernels that do not count this (before 5.12)
/// do not leave runs out either.
///
/// # Errors
/// It is not a program.
pub(crate) fn recursion_misses(program: BorrowedFd<'_>) -> io::Result<u64> {
    #[repr(C)]
    #[derive(Default)]
    struct Information {
        /// What precedes the count, in all kernels that have it.
        before: [u64; 26],
        misses: u64,
    }
    let mut found = Information::default();
    // SAFETY: `Information` is the beginning of the kernel's bpf_prog_info, in which zeroed lengths ask for no arrays.
    unsafe { information(program, &mut found) }?;
    Ok(found.misses)
}

/// The name that a program was loaded under.
///
/// # Errors
/// It is not a program.
pub(crate) fn program_name(program: BorrowedFd<'_>) -> io::Result<String> {
    #[repr(C)]
    #[derive(Default)]
    struct Information {
        /// What precedes the name, in all kernels.
        before: [u64; 8],
        name: [u8; 16],
    }
    let mut found = Information::default();
    // SAFETY: `Information` is the beginning of the kernel's bpf_prog_info, in which zeroed lengths ask for no arrays.
    unsafe { information(program, &mut found) }?;
    let name = found.name.iter().take_while(|byte| **byte != 0).copied().collect();
    Ok(String::from_utf8(name).unwrap_or_default())
}

/// # Safety
/// `T` must be a beginning of the structure that the kernel has for this kind of object, valid with any bits.
unsafe fn information<T>(object: BorrowedFd<'_>, found: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        object: RawFd,
        length: u32,
        found: u64,
    }
    let mut attributes =
        Attributes { object: object.as_raw_fd(), length: length(size_of::<T>())?, found: address(found) };
    // SAFETY: the kernel writes at most `length` bytes, all of them in `found`, which is borrowed for the call.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attributes) }.map(drop)
}

/// # Safety
/// `A` must be the attributes that the command takes, without gaps, and every address in them valid during the call.
unsafe fn bpf<A>(command: libc::c_int, attributes: &mut A) -> io::Result<RawFd> {
    // SAFETY: the caller vouches for the attributes; the kernel reads (and sometimes writes) exactly their size.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attributes), size_of::<A>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

fn length(length: usize) -> io::Result<u32> {
    u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn object_name(name: &str) -> [u8; 16] {
    let mut field = [0; 16];
    for (to, from) in field.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    field
}

/// The last lines, which say what was wrong.
fn end_of_log(log: &[u8]) -> String {
    let text = log.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let lines: Vec<_> = text.lines().rev().take(6).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}
