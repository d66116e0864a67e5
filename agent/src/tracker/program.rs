//! The eBPF programs, and what of the kernel's layout they are made from.
//!
//! There are four, each for one tracepoint:
//! ```text
//!   issue    block_rq_issue      a request is given to the disk: note its place under its address
//!   request  block_rq_complete   a request is complete: forget the note, and mark what was written
//!   queue    block_bio_queue     a bio is given to the disk: note its place under its address, and mark it
//!   done     block_bio_complete  a bio is complete: if its place was noted, forget the note, and mark it
//! ```
//! `issue` and `request` are all that a disk with a request queue needs, with one exception: where the disk takes discards of
//! many ranges at once, a request says only the first, and its bios say all of them. There `queue` follows discards, and `request`
//! moves the place of every bio of a discard to another table, of what was discarded, instead of marking it: so many places byte by
//! byte are more than a program may mark. It is collected like a mark; it stays until then, or until its address is used again. Disks without
//! a request queue (device-mapper, md, zram, heads of multipath) are tracked by `queue` and `done` alone. A bio is followed by its
//! address, since its device and place are changed on its way: a driver may hand the very same bio on to another disk.
//!
//! A completion marks. It is what counts, since a mark that is set before the data is on the disk may be collected and read
//! too early. But a completion can pass unseen: the kernel does not run a program that is interrupted while it runs on that
//! CPU, and some kernels run none while an interrupt happens to disturb a process that they protect. Therefore
//! - each program of a completion is attached three times: a completion can interrupt a completion twice at most (task,
//!   softirq, hardirq);
//! - what is noted and not forgotten counts as being written: every collection takes it, until its completion is seen, its
//!   address is used again (which marks what was noted there), the disk is found to have nothing left to do, or it is older than any
//!   write can be.

use std::os::fd::BorrowedFd;

use super::{
    assembler::{
        Assembler,
        Condition::{AtLeast, Differs, Equal, Greater, Less},
        Helper, Label,
        Operation::{Add, And, Set, ShiftRight, Subtract},
        Register::{Frame, R0, R1, R2, R3, R4, R6, R7, R8, R9},
    },
    btf::{Btf, BtfError, Field, TypeId, Width},
    geometry::{COARSE_SHIFT, ENTRY_SHIFT, Geometry},
    meta::LOST_BIOS_OFFSET,
};
use crate::sys::bpf::Instruction;

/// A request of at most this many granules is marked granule by granule. One that is not aligned touches one more.
const MOST_FINE: i32 = (1 << COARSE_SHIFT) + 1;

/// No request is larger: its length in bytes has 32 bits.
const MOST_BYTES: u64 = 1 << 32;

pub(super) const SECTOR_SHIFT: u32 = 9;

/// The numbers of the operations that change nothing are even.
const CHANGES: i32 = 1;
/// Where the operation stands among the flags of a bio.
const OPERATION: i32 = 0xff;
const DISCARD: i32 = 3;

/// A tracepoint that a program is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    Issue,
    Request,
    BioQueue,
    BioDone,
}

impl Hook {
    /// How often the program is attached. What is not noted is still marked when it is complete.
    pub(super) fn copies(self) -> usize {
        if self == Self::Issue { 1 } else { 3 }
    }

    /// As it is pinned and shown by tools.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Issue => "issue",
            Self::Request => "request",
            Self::BioQueue => "queue",
            Self::BioDone => "done",
        }
    }
}

/// What a program looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) geometry: Geometry,
    /// Bios are followed only if they discard.
    pub(super) only_discards: bool,
    /// If a request may discard more than one place, so many bios of a discard that is complete are looked at.
    pub(super) most_discards: u16,
}

/// The maps that programs write to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Maps<'a> {
    pub(super) live: BorrowedFd<'a>,
    pub(super) coarse: BorrowedFd<'a>,
    pub(super) meta: BorrowedFd<'a>,
    /// From the address of a request or bio that is being written to its first sector and its length in sectors.
    pub(super) notes: BorrowedFd<'a>,
    /// The same of the bios of discards that are complete.
    pub(super) discarded: BorrowedFd<'a>,
}

/// What programs must know of the running kernel.
#[derive(Debug, Clone)]
pub(super) struct KernelLayout {
    issue: Tracepoint,
    request: Tracepoint,
    bio_queue: Tracepoint,
    bio_done: Tracepoint,
    request_flags: Field,
    request_sector: Field,
    request_bytes: Field,
    /// The first of its bios.
    request_bio: Field,
    /// From a request to its disk.
    request_disk: Vec<Field>,
    bio_flags: Field,
    /// The next bio of the same request.
    bio_next: Field,
    bio_sector: Field,
    bio_bytes: Field,
    /// From a bio to its disk.
    bio_disk: Vec<Field>,
    major: Field,
    minor: Field,
}

#[derive(Debug, Clone, Copy)]
struct Tracepoint {
    id: TypeId,
    /// The argument that is the request or the bio.
    subject: Field,
    /// The argument after the last but one.
    last: Field,
}

impl KernelLayout {
    /// Looks everything up by name; members have moved between kernels, so there may be two places to look.
    pub(super) fn of(btf: &Btf) -> Result<Self, BtfError> {
        let path = |steps: [(&str, &str); 2]| steps.map(|(of, member)| btf.field(of, member)).into_iter().collect();
        let single = |of: &str, member: &str| btf.field(of, member).map(|field| vec![field]);
        Ok(Self {
            issue: Tracepoint::of(btf, "btf_trace_block_rq_issue", "request")?,
            request: Tracepoint::of(btf, "btf_trace_block_rq_complete", "request")?,
            bio_queue: Tracepoint::of(btf, "btf_trace_block_bio_queue", "bio")?,
            bio_done: Tracepoint::of(btf, "btf_trace_block_bio_complete", "bio")?,
            request_flags: btf.field("request", "cmd_flags")?,
            request_sector: btf.field("request", "__sector")?,
            request_bytes: btf.field("request", "__data_len")?,
            request_bio: btf.field("request", "bio")?,
            // Until 5.16 a request knew its disk.
            request_disk: single("request", "rq_disk")
                .or_else(|_| path([("request", "q"), ("request_queue", "disk")]))?,
            bio_flags: btf.field("bio", "bi_opf")?,
            bio_next: btf.field("bio", "bi_next")?,
            bio_sector: btf.field("bio", "bi_iter.bi_sector")?,
            bio_bytes: btf.field("bio", "bi_iter.bi_size")?,
            // Until 5.11 a bio knew its disk.
            bio_disk: single("bio", "bi_disk").or_else(|_| path([("bio", "bi_bdev"), ("block_device", "bd_disk")]))?,
            major: btf.field("gendisk", "major")?,
            minor: btf.field("gendisk", "first_minor")?,
        })
    }

    /// The tracepoint of a hook, as the kernel numbers it.
    pub(super) fn tracepoint(&self, hook: Hook) -> TypeId {
        match hook {
            Hook::Issue => self.issue.id,
            Hook::Request => self.request.id,
            Hook::BioQueue => self.bio_queue.id,
            Hook::BioDone => self.bio_done.id,
        }
    }

    /// The program of a hook.
    pub(super) fn program(&self, hook: Hook, target: Target, maps: Maps<'_>) -> Vec<Instruction> {
        let mut code = Assembler::default();
        let end = code.label();
        let mut program = Program { layout: self, target, maps, code, end };
        match hook {
            Hook::Issue => program.issue(),
            Hook::Request => program.request(),
            Hook::BioQueue => program.bio_queue(),
            Hook::BioDone => program.bio_done(),
        }
        program.finish()
    }
}

impl Tracepoint {
    fn of(btf: &Btf, name: &str, subject: &str) -> Result<Self, BtfError> {
        let id = btf.typedef(name)?;
        let arguments = btf.tracepoint_arguments(id)?;
        let missing = || BtfError::Missing(format!("{subject} among the arguments of {name}"));
        let place = arguments.iter().position(|of| of.as_deref() == Some(subject)).ok_or_else(missing)?;
        let argument = |index: usize| {
            let offset = i16::try_from(index * 8).map_err(|_| missing())?;
            Ok(Field { offset, width: Width::Eight })
        };
        Ok(Self { id, subject: argument(place)?, last: argument(arguments.len().saturating_sub(1))? })
    }
}

/// Places on the stack.
const KEY: Field = Field { offset: -4, width: Width::Four };
const ADDRESS: Field = Field { offset: -16, width: Width::Eight };
const SECTORS: Field = Field { offset: -24, width: Width::Eight };
const FIRST_SECTOR: Field = Field { offset: -32, width: Width::Eight };
const REQUEST: Field = Field { offset: -40, width: Width::Eight };

/// Where the parts of a noted place are.
const PLACE_FIRST: Field = Field { offset: 0, width: Width::Eight };
const PLACE_SECTORS: Field = Field { offset: 8, width: Width::Eight };

/// A program that is being written. Between the parts: `R6` is the first sector, `R7` the number of sectors.
struct Program<'a> {
    layout: &'a KernelLayout,
    target: Target,
    maps: Maps<'a>,
    code: Assembler,
    /// Where the program ends.
    end: Label,
}

impl Program<'_> {
    fn issue(&mut self) {
        let end = self.end;
        self.code.load(R8, R1, self.layout.issue.subject).load(R2, R8, self.layout.request_flags);
        self.code.compute(R2, And, CHANGES).jump_if(R2, Equal, 0, end);
        self.leave_unless_on_disk(&self.layout.request_disk);
        self.code.load(R6, R8, self.layout.request_sector).load(R7, R8, self.layout.request_bytes);
        self.code.compute(R7, ShiftRight, shift(SECTOR_SHIFT)).jump_if(R7, Equal, 0, end);
        self.prepare_note();
        // The completion of an earlier request at this address was not seen: that one is marked.
        let fresh = self.code.label();
        self.look_up(self.maps.notes, fresh);
        self.note();
        self.mark();
        self.code.bind(fresh);
        self.note();
    }

    fn request(&mut self) {
        let Tracepoint { subject, last: bytes, .. } = self.layout.request;
        let end = self.end;
        // A request without data, such as a flush, has no place.
        self.code.load(R7, R1, bytes).truncate(R7);
        self.code.compute(R7, ShiftRight, shift(SECTOR_SHIFT)).jump_if(R7, Equal, 0, end);
        self.code.load(R8, R1, subject).load(R2, R8, self.layout.request_flags);
        self.code.compute(R2, And, CHANGES).jump_if(R2, Equal, 0, end);
        self.leave_unless_on_disk(&self.layout.request_disk);
        if self.target.most_discards > 1 {
            let one_place = self.code.label();
            self.code.load(R2, R8, self.layout.request_flags).compute(R2, And, OPERATION);
            self.code.jump_if(R2, Differs, DISCARD, one_place).store(Frame, REQUEST, R8);
            self.note_discarded();
            self.forget_note(REQUEST);
            self.code.jump(end).bind(one_place);
        }
        self.code.load(R6, R8, self.layout.request_sector).store(Frame, ADDRESS, R8);
        self.forget_note(ADDRESS);
        self.mark();
    }

    /// Moves what is noted of every bio of the request in `R8` to what was discarded.
    fn note_discarded(&mut self) {
        let [done, round, next, other, free, there] = [(); 6].map(|()| self.code.label());
        self.code.load(R8, R8, self.layout.request_bio).compute(R9, Set, 0);
        // The verifier takes two ways through a round for one if the stack looks the same after both.
        self.code.store(Frame, KEY, R9);
        self.code.bind(round).jump_if(R8, Equal, 0, done);
        self.code.load(R6, R8, self.layout.bio_sector).load(R7, R8, self.layout.bio_bytes);
        self.code.compute(R7, ShiftRight, shift(SECTOR_SHIFT)).jump_if(R7, Equal, 0, next);
        self.prepare_note();
        self.code.address_of(R2, ADDRESS).set_map(R1, self.maps.discarded).call(Helper::Lookup);
        self.code.jump_if(R0, Equal, 0, free).load(R2, R0, PLACE_SECTORS).load(R3, R0, PLACE_FIRST);
        // Another copy of this program was here.
        self.code.jump_if(R3, Differs, R6, other).jump_if(R2, Equal, R7, there);
        // A bio that was split off is not seen before it is complete. If one lies there that was not collected, that one is lost.
        self.code.bind(other);
        self.count_lost();
        self.code.bind(free);
        self.put(self.maps.discarded);
        self.code.jump_if(R0, Equal, 0, there);
        // No room: its note stays until it is too old for a write; without one it is lost.
        self.code.address_of(R2, ADDRESS).set_map(R1, self.maps.notes).call(Helper::Lookup);
        self.code.jump_if(R0, Differs, 0, next);
        self.count_lost();
        // Last: what is in neither table would be nowhere.
        self.code.bind(there);
        self.forget_note(ADDRESS);
        self.code.bind(next).load(R8, R8, self.layout.bio_next).compute(R9, Add, 1);
        self.code.jump_if(R9, Less, i32::from(self.target.most_discards), round).jump_if(R8, Equal, 0, done);
        self.count_lost();
        self.code.bind(done);
    }

    fn bio_queue(&mut self) {
        let end = self.end;
        self.code.load(R8, R1, self.layout.bio_queue.subject);
        self.leave_unless_followed();
        self.leave_unless_on_disk(&self.layout.bio_disk);
        self.code.load(R6, R8, self.layout.bio_sector).load(R7, R8, self.layout.bio_bytes);
        self.code.compute(R7, ShiftRight, shift(SECTOR_SHIFT)).jump_if(R7, Equal, 0, end);
        self.prepare_note();
        // Either the place of an earlier bio at this address, which was not collected or whose completion was not seen, or
        // that of this one is marked.
        let [noted, known] = [(); 2].map(|()| self.code.label());
        if self.target.only_discards {
            self.look_up(self.maps.discarded, noted);
            self.code.jump(known);
        }
        self.code.bind(noted);
        self.look_up(self.maps.notes, known);
        self.code.bind(known);
        self.note();
        self.count_if_not_noted();
        if self.target.only_discards {
            // Not before there is the note: until the earlier place is marked, nobody must find the disk quiet.
            self.code.address_of(R2, ADDRESS).set_map(R1, self.maps.discarded).call(Helper::Delete);
        }
        self.mark();
    }

    fn bio_done(&mut self) {
        let end = self.end;
        self.code.load(R8, R1, self.layout.bio_done.subject);
        self.leave_unless_followed();
        self.code.store(Frame, ADDRESS, R8);
        self.look_up(self.maps.notes, end);
        self.forget_note(ADDRESS);
        self.mark();
    }

    /// Of the bio in `R8`: goes on if its operation is one that is followed.
    fn leave_unless_followed(&mut self) {
        let end = self.end;
        self.code.load(R2, R8, self.layout.bio_flags);
        if self.target.only_discards {
            self.code.compute(R2, And, OPERATION).jump_if(R2, Differs, DISCARD, end);
        } else {
            self.code.compute(R2, And, CHANGES).jump_if(R2, Equal, 0, end);
        }
    }

    /// Of the request or bio in `R8`: goes on if it is for the disk.
    fn leave_unless_on_disk(&mut self, path: &[Field]) {
        let end = self.end;
        self.code.compute(R2, Set, R8);
        for step in path {
            self.code.load(R2, R2, *step);
        }
        for (field, number) in [(self.layout.major, self.target.major), (self.layout.minor, self.target.minor)] {
            self.code.load(R3, R2, field).jump_if(R3, Differs, number.cast_signed(), end);
        }
    }

    /// Prepares to note the place (`R6`, `R7`) of the request or bio in `R8`.
    fn prepare_note(&mut self) {
        self.code.store(Frame, ADDRESS, R8).store(Frame, FIRST_SECTOR, R6).store(Frame, SECTORS, R7);
    }

    /// Loads the place that a table has under `ADDRESS`; jumps if there is none.
    fn look_up(&mut self, table: BorrowedFd<'_>, if_none: Label) {
        self.code.address_of(R2, ADDRESS).set_map(R1, table).call(Helper::Lookup);
        self.code.jump_if(R0, Equal, 0, if_none).load(R6, R0, PLACE_FIRST).load(R7, R0, PLACE_SECTORS);
    }

    /// Forgets the note under the address that is kept there.
    fn forget_note(&mut self, address: Field) {
        self.code.address_of(R2, address).set_map(R1, self.maps.notes).call(Helper::Delete);
    }

    /// Notes the place that is prepared under the prepared address. `R0` is 0 if that succeeded.
    fn note(&mut self) {
        self.put(self.maps.notes);
    }

    /// The same in another table.
    fn put(&mut self, table: BorrowedFd<'_>) {
        self.code.address_of(R2, ADDRESS).address_of(R3, FIRST_SECTOR).compute(R4, Set, 0);
        self.code.set_map(R1, table).call(Helper::Update);
    }

    /// Counts a bio that could not be noted (`R0`) as lost: nothing else marks it.
    fn count_if_not_noted(&mut self) {
        let noted = self.code.label();
        self.code.jump_if(R0, Equal, 0, noted);
        self.count_lost();
        self.code.bind(noted);
    }

    fn count_lost(&mut self) {
        let counted = self.code.label();
        self.code.compute(R2, Set, 0).store(Frame, KEY, R2).address_of(R2, KEY);
        self.code.set_map(R1, self.maps.meta).call(Helper::Lookup).jump_if(R0, Equal, 0, counted);
        self.code.compute(R1, Set, 1).atomic_add(R0, LOST_BIOS_OFFSET, R1);
        self.code.bind(counted);
    }

    /// Marks `R7` sectors from sector `R6` on.
    fn mark(&mut self) {
        let large = self.code.label();
        let granule = shift(self.target.geometry.granule_shift() - SECTOR_SHIFT);
        // From now on: R6 the first granule, R8 how many follow it.
        self.code.compute(R7, Add, R6).compute(R7, Subtract, 1);
        self.code.compute(R6, ShiftRight, granule).compute(R7, ShiftRight, granule);
        self.keep_on_disk();
        self.code.compute(R8, Set, R7).compute(R8, Subtract, R6);
        self.code.jump_if(R8, AtLeast, MOST_FINE, large);
        self.mark_each(self.maps.live, MOST_FINE);
        self.code.bind(large);
        self.code.compute(R6, ShiftRight, shift(COARSE_SHIFT)).compute(R7, ShiftRight, shift(COARSE_SHIFT));
        self.code.compute(R8, Set, R7).compute(R8, Subtract, R6);
        // One more than fit, since a request need not be aligned.
        let most = (MOST_BYTES >> self.target.geometry.granule_shift() >> COARSE_SHIFT) + 1;
        self.mark_each(self.maps.coarse, i32::try_from(most).unwrap_or(i32::MAX));
    }

    /// Leaves if the first granule (`R6`) is not on the disk; the last one (`R7`) is moved onto it.
    fn keep_on_disk(&mut self) {
        let (end, inside) = (self.end, self.code.label());
        self.code.set_wide(R1, self.target.geometry.granules());
        self.code.jump_if(R6, AtLeast, R1, end).jump_if(R7, Less, R1, inside);
        self.code.compute(R7, Set, R1).compute(R7, Subtract, 1).bind(inside);
    }

    /// Sets the bytes `R6` to `R6 + R8` of the map, where `R8 < most`, and ends. The verifier follows every round: it knows
    /// the counter, and the bound of `R8` from the first comparison.
    fn mark_each(&mut self, map: BorrowedFd<'_>, most: i32) {
        let (end, round) = (self.end, self.code.label());
        self.code.jump_if(R8, AtLeast, most, end);
        self.code.compute(R9, Set, 0).bind(round).jump_if(R9, Greater, R8, end);
        self.code.compute(R7, Set, R6).compute(R7, Add, R9);
        self.code.compute(R2, Set, R7).compute(R2, ShiftRight, shift(ENTRY_SHIFT)).store(Frame, KEY, R2);
        self.code.compute(R7, And, (1 << ENTRY_SHIFT) - 1);
        self.code.address_of(R2, KEY).set_map(R1, map).call(Helper::Lookup).jump_if(R0, Equal, 0, end);
        self.code.compute(R0, Add, R7).store_byte(R0, 1);
        self.code.compute(R9, Add, 1).jump(round);
    }

    fn finish(mut self) -> Vec<Instruction> {
        self.code.bind(self.end).compute(R0, Set, 0).exit();
        self.code.finish()
    }
}

fn shift(bits: u32) -> i32 {
    bits.cast_signed()
}
