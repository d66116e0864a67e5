#![allow(clippy::cast_possible_truncation)] // Small numbers of a miniature.

use super::*;

/// Lays out a description type by type.
#[derive(Default)]
struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl Builder {
    fn new() -> Self {
        Self { strings: vec![0], ..Self::default() }
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        at
    }

    fn add(&mut self, name: &str, info: u32, size_or_type: u32, extra: &[u32]) -> u32 {
        let name = self.name(name);
        for word in [name, info, size_or_type].iter().chain(extra) {
            self.types.extend_from_slice(&word.to_le_bytes());
        }
        self.count += 1;
        self.count
    }

    fn int(&mut self, name: &str, size: u32) -> u32 {
        self.add(name, kind::INT << 24, size, &[0])
    }

    fn structure(&mut self, name: &str, flags: u32, members: &[(&str, u32, u32)]) -> u32 {
        let extra: Vec<u32> = members.iter().flat_map(|(name, of, offset)| [self.name(name), *of, *offset]).collect();
        self.add(name, flags | kind::STRUCT << 24 | members.len() as u32, 64, &extra)
    }

    fn build(&self) -> Vec<u8> {
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        let header = [MAGIC | 1 << 16, 24, 0, types, types, strings];
        let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend_from_slice(&self.types);
        bytes.extend_from_slice(&self.strings);
        bytes
    }
}

const BITFIELDS: u32 = 1 << 31;

/// A miniature of the kernel: typedefs, an anonymous structure, a nested one, bitfields, a tracepoint.
fn miniature() -> Vec<u8> {
    let mut b = Builder::new();
    let int = b.int("int", 4);
    let long = b.int("long", 8);
    let sector = b.add("sector_t", kind::TYPEDEF << 24, long, &[]);
    let iter = b.structure("bvec_iter", 0, &[("bi_sector", sector, 0), ("bi_size", int, 64)]);
    let anonymous = b.structure("", 0, &[("inner", int, 32)]);
    let bio = b.structure("bio", 0, &[("first", long, 0), ("", anonymous, 64), ("bi_iter", iter, 128)]);
    b.structure("flags", BITFIELDS, &[("one", int, 1 << 24), ("whole", int, 32)]);
    let constant = b.add("", kind::CONST << 24, bio, &[]);
    let pointer = b.add("", kind::POINTER << 24, constant, &[]);
    let prototype = b.add("", kind::PROTOTYPE << 24 | 3, 0, &[0, 0, 0, pointer, 0, int]);
    let prototype = b.add("", kind::POINTER << 24, prototype, &[]);
    b.add("btf_trace_event", kind::TYPEDEF << 24, prototype, &[]);
    b.build()
}

#[test]
fn members_are_found_through_names_nests_and_typedefs() {
    let btf = Btf::parse(miniature()).unwrap();
    let field = |offset, width| Ok(Field { offset, width });
    assert_eq!(btf.field("bio", "first"), field(0, Width::Eight));
    assert_eq!(btf.field("bio", "inner"), field(12, Width::Four));
    assert_eq!(btf.field("bio", "bi_iter.bi_sector"), field(16, Width::Eight));
    assert_eq!(btf.field("bio", "bi_iter.bi_size"), field(24, Width::Four));
    assert_eq!(btf.field("flags", "whole"), field(4, Width::Four));
}

#[test]
fn what_is_missing_or_not_loadable_is_named() {
    let btf = Btf::parse(miniature()).unwrap();
    assert_eq!(btf.field("bio", "second"), Err(BtfError::Missing("bio.second".to_owned())));
    assert_eq!(btf.field("biography", "first"), Err(BtfError::Missing("biography".to_owned())));
    assert_eq!(btf.field("bio", "bi_iter"), Err(BtfError::Unknown("bio.bi_iter".to_owned())));
    assert_eq!(btf.field("flags", "one"), Err(BtfError::Unknown("one".to_owned())));
}

#[test]
fn a_tracepoints_arguments_are_named() {
    let btf = Btf::parse(miniature()).unwrap();
    let tracepoint = btf.typedef("btf_trace_event").unwrap();
    assert_eq!(btf.tracepoint_arguments(tracepoint).unwrap(), [Some("bio".to_owned()), None]);
}

/// Whatever is cut off or changed: an answer or an error, never a panic or an endless loop.
#[test]
fn damage_is_an_error() {
    let whole = miniature();
    let ask = |bytes: Vec<u8>| {
        if let Ok(btf) = Btf::parse(bytes) {
            let _ = btf.field("bio", "bi_iter.bi_size");
            let _ = btf.typedef("btf_trace_event").and_then(|id| btf.tracepoint_arguments(id));
        }
    };
    for length in 0..whole.len() {
        ask(whole[..length].to_vec());
    }
    for at in 0..whole.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] = value;
            ask(damaged);
        }
    }
}

#[test]
fn live_the_running_kernel_is_understood() {
    let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
        println!("skipped: this kernel has no BTF");
        return;
    };
    let btf = Btf::parse(bytes).unwrap();
    assert!(btf.field("bio", "bi_iter.bi_sector").is_ok_and(|field| field.width == Width::Eight));
    let tracepoint = btf.typedef("btf_trace_block_rq_complete").unwrap();
    assert_eq!(btf.tracepoint_arguments(tracepoint).unwrap().first(), Some(&Some("request".to_owned())));
}
