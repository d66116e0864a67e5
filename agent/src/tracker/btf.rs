//! The kernel's own description of its types (BTF), read from `/sys/kernel/btf/vmlinux`.
//!
//! Types are numbered from 1 in the order in which they stand; a type is 12 bytes (name, kind and count, size or type) and
//! what its kind adds. Only what a tracker asks for is understood: the number of a typedef, the arguments of a tracepoint,
//! and where a member of a structure lies.

use std::ops::Range;

/// What is wrong with the description, or missing in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BtfError {
    #[error("the kernel's BTF is malformed at byte {0}")]
    Malformed(usize),
    #[error("the kernel's BTF has no {0}")]
    Missing(String),
    #[error("{0} has a shape in the kernel's BTF that is not known")]
    Unknown(String),
}

/// The number of a type; 0 is `void`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TypeId(pub(crate) u32);

/// A member of a structure, as a program loads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field {
    /// Bytes from the beginning of the structure.
    pub(crate) offset: i16,
    pub(crate) width: Width,
}

/// How many bytes a load takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    Four,
    Eight,
}

/// The parsed description.
pub(crate) struct Btf {
    bytes: Vec<u8>,
    strings: Range<usize>,
    /// Where each type begins, from number 1 on.
    types: Vec<u32>,
}

mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const POINTER: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const PROTOTYPE: u32 = 13;
    pub(super) const VARIABLE: u32 = 14;
    pub(super) const SECTION: u32 = 15;
    pub(super) const DECLARATION_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

const MAGIC: u32 = 0xeb9f;
const TYPE_BYTES: usize = 12;
const MEMBER_BYTES: usize = 12;
/// No chain of typedefs or nest of anonymous structures is longer.
const MAX_DEPTH: u32 = 32;

/// One type, without what its kind adds.
#[derive(Clone, Copy)]
struct Type {
    at: usize,
    name: u32,
    kind: u32,
    count: usize,
    has_bitfields: bool,
    size_or_type: u32,
}

/// Where something was found: bits from the beginning of the structure.
struct Found {
    bits: u32,
    of: TypeId,
}

impl Btf {
    /// Takes what a file under `/sys/kernel/btf` holds, of a kernel with this machine's byte order.
    pub(crate) fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        let header = |index: usize| word(&bytes, index * 4);
        if header(0)? & 0xffff != MAGIC {
            return Err(BtfError::Malformed(0));
        }
        let section = |offset: usize, length: usize| {
            let start = (header(1)? as usize).saturating_add(header(offset)? as usize);
            let end = start.saturating_add(header(length)? as usize);
            bytes.get(start..end).map(|_| start..end).ok_or(BtfError::Malformed(start))
        };
        let (types, strings) = (section(2, 3)?, section(4, 5)?);
        let mut btf = Self { bytes, strings, types: Vec::new() };
        btf.index(types)?;
        Ok(btf)
    }

    /// The number of the typedef of this name.
    pub(crate) fn typedef(&self, name: &str) -> Result<TypeId, BtfError> {
        self.find(kind::TYPEDEF, name)
    }

    /// The structures that the arguments of a tracepoint point to, without the first, which is the tracer's own; an argument
    /// that is no pointer to a structure has no name.
    pub(crate) fn tracepoint_arguments(&self, tracepoint: TypeId) -> Result<Vec<Option<String>>, BtfError> {
        let unknown = || BtfError::Unknown("a tracepoint".to_owned());
        let pointer = self.resolve(tracepoint)?.filter(|t| t.kind == kind::POINTER).ok_or_else(unknown)?;
        let prototype = self.resolve(TypeId(pointer.size_or_type))?;
        let prototype = prototype.filter(|t| t.kind == kind::PROTOTYPE).ok_or_else(unknown)?;
        let first = prototype.at + TYPE_BYTES;
        (1..prototype.count).map(|argument| self.pointee(TypeId(self.word(first + argument * 8 + 4)?))).collect()
    }

    /// A member of a structure by its path, such as `bio` and `bi_iter.bi_size`. Members of anonymous structures count as
    /// their parent's, as in C.
    pub(crate) fn field(&self, structure: &str, path: &str) -> Result<Field, BtfError> {
        let missing = || BtfError::Missing(format!("{structure}.{path}"));
        let unknown = || BtfError::Unknown(format!("{structure}.{path}"));
        let mut found = Found { bits: 0, of: self.find(kind::STRUCT, structure)? };
        for name in path.split('.') {
            let of = self.resolve(found.of)?.ok_or_else(unknown)?;
            let member = self.member(of, name, MAX_DEPTH)?.ok_or_else(missing)?;
            found = Found { bits: found.bits + member.bits, of: member.of };
        }
        let offset = i16::try_from(found.bits / 8).map_err(|_| unknown())?;
        let width = match self.size(found.of)? {
            Some(4) => Width::Four,
            Some(8) => Width::Eight,
            _ => return Err(unknown()),
        };
        if found.bits.is_multiple_of(8) { Ok(Field { offset, width }) } else { Err(unknown()) }
    }

    fn index(&mut self, section: Range<usize>) -> Result<(), BtfError> {
        let mut at = section.start;
        while at < section.end {
            let length = TYPE_BYTES + self.type_at(at)?.extra_bytes().ok_or(BtfError::Malformed(at))?;
            self.types.push(u32::try_from(at).map_err(|_| BtfError::Malformed(at))?);
            at += length;
        }
        if at == section.end { Ok(()) } else { Err(BtfError::Malformed(at)) }
    }

    fn find(&self, kind: u32, name: &str) -> Result<TypeId, BtfError> {
        for (index, at) in self.types.iter().enumerate() {
            let of = self.type_at(*at as usize)?;
            if of.kind == kind && self.is_named(of.name, name) {
                let number = u32::try_from(index + 1).map_err(|_| BtfError::Malformed(of.at))?;
                return Ok(TypeId(number));
            }
        }
        Err(BtfError::Missing(name.to_owned()))
    }

    fn member(&self, of: Type, name: &str, depth: u32) -> Result<Option<Found>, BtfError> {
        if !matches!(of.kind, kind::STRUCT | kind::UNION) || depth == 0 {
            return Ok(None);
        }
        for index in 0..of.count {
            let at = of.at + TYPE_BYTES + index * MEMBER_BYTES;
            let (member, of_type, offset) = (self.word(at)?, TypeId(self.word(at + 4)?), self.word(at + 8)?);
            let (bits, is_bitfield) =
                if of.has_bitfields { (offset & 0x00ff_ffff, offset >> 24 != 0) } else { (offset, false) };
            if self.is_named(member, name) {
                return if is_bitfield {
                    Err(BtfError::Unknown(name.to_owned()))
                } else {
                    Ok(Some(Found { bits, of: of_type }))
                };
            }
            if self.is_named(member, "")
                && let Some(inner) = self.resolve(of_type)?
                && let Some(found) = self.member(inner, name, depth - 1)?
            {
                return Ok(Some(Found { bits: bits + found.bits, of: found.of }));
            }
        }
        Ok(None)
    }

    /// The type behind typedefs and qualifiers; none for `void`.
    fn resolve(&self, id: TypeId) -> Result<Option<Type>, BtfError> {
        let mut id = id;
        for _ in 0..MAX_DEPTH {
            let Some(index) = id.0.checked_sub(1) else { return Ok(None) };
            let at = self.types.get(index as usize).ok_or_else(|| BtfError::Missing(format!("type {}", id.0)))?;
            let of = self.type_at(*at as usize)?;
            match of.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = TypeId(of.size_or_type);
                }
                _ => return Ok(Some(of)),
            }
        }
        Err(BtfError::Unknown(format!("type {}", id.0)))
    }

    fn pointee(&self, id: TypeId) -> Result<Option<String>, BtfError> {
        let Some(pointer) = self.resolve(id)?.filter(|t| t.kind == kind::POINTER) else { return Ok(None) };
        let structure = self.resolve(TypeId(pointer.size_or_type))?.filter(|t| t.kind == kind::STRUCT);
        Ok(structure.map(|t| String::from_utf8_lossy(self.string(t.name)).into_owned()))
    }

    fn size(&self, id: TypeId) -> Result<Option<u32>, BtfError> {
        Ok(self.resolve(id)?.and_then(|of| match of.kind {
            kind::POINTER => Some(8),
            kind::INT | kind::ENUM | kind::STRUCT | kind::UNION => Some(of.size_or_type),
            _ => None,
        }))
    }

    fn type_at(&self, at: usize) -> Result<Type, BtfError> {
        let (name, info, size_or_type) = (self.word(at)?, self.word(at + 4)?, self.word(at + 8)?);
        let (kind, count, has_bitfields) = (info >> 24 & 0x1f, (info & 0xffff) as usize, info >> 31 == 1);
        Ok(Type { at, name, kind, count, has_bitfields, size_or_type })
    }

    fn is_named(&self, offset: u32, name: &str) -> bool {
        let rest = self.bytes.get(self.strings.clone()).and_then(|strings| strings.get(offset as usize..));
        rest.and_then(|rest| rest.strip_prefix(name.as_bytes())).is_some_and(|rest| rest.first() == Some(&0))
    }

    fn string(&self, offset: u32) -> &[u8] {
        let rest = self.bytes.get(self.strings.clone()).and_then(|strings| strings.get(offset as usize..));
        rest.and_then(|rest| rest.split(|byte| *byte == 0).next()).unwrap_or_default()
    }

    fn word(&self, at: usize) -> Result<u32, BtfError> {
        word(&self.bytes, at)
    }
}

impl Type {
    /// Bytes that follow the type; none for a kind that is not known, after which nothing can be read.
    fn extra_bytes(self) -> Option<usize> {
        Some(match self.kind {
            kind::INT | kind::VARIABLE | kind::DECLARATION_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::SECTION | kind::ENUM64 => self.count * MEMBER_BYTES,
            kind::ENUM | kind::PROTOTYPE => self.count * 8,
            1..=kind::ENUM64 => 0,
            _ => return None,
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    let end = at.checked_add(4).ok_or(BtfError::Malformed(at))?;
    let four = bytes.get(at..end).and_then(|four| four.try_into().ok()).ok_or(BtfError::Malformed(at))?;
    Ok(u32::from_le_bytes(four))
}

#[cfg(test)]
mod tests;
