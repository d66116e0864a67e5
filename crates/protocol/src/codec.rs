//! A reader that cannot run past its end, and a writer that knows where its frame began.

use crate::{
    ByteCount, ByteOffset, FrameHeader, FrameKind, HEADER_LENGTH, MAX_BODY_LENGTH, MAX_NAME_LENGTH, ProtocolError,
};

/// Reads fields from a body, each with the name it has in errors.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    pub(crate) fn bytes(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], ProtocolError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(ProtocolError::Truncated { what })?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], ProtocolError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(ProtocolError::Truncated { what })?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, ProtocolError> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, ProtocolError> {
        self.array(what).map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, ProtocolError> {
        self.array(what).map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, ProtocolError> {
        self.array(what).map(u64::from_be_bytes)
    }

    /// An id: one byte of length, then letters, digits, `-` and `_`.
    pub(crate) fn name(&mut self, what: &'static str) -> Result<&'a str, ProtocolError> {
        let length = usize::from(self.u8(what)?);
        check_limit(what, length as u64, MAX_NAME_LENGTH as u64)?;
        let bytes = self.bytes(length, what)?;
        let valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
        if bytes.is_empty() || !bytes.iter().all(valid) {
            return Err(ProtocolError::Invalid { what });
        }
        std::str::from_utf8(bytes).map_err(|_| ProtocolError::Invalid { what })
    }

    /// An offset and a length above zero whose sum is still a number.
    pub(crate) fn range(&mut self, what: &'static str) -> Result<(ByteOffset, ByteCount), ProtocolError> {
        let (offset, length) = (self.u64(what)?, self.u64(what)?);
        if length == 0 || offset.checked_add(length).is_none() {
            return Err(ProtocolError::Invalid { what });
        }
        Ok((ByteOffset(offset), ByteCount(length)))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn finish(self) -> Result<(), ProtocolError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(ProtocolError::TrailingBytes { extra }),
        }
    }
}

/// Refuses `length` above `limit`.
pub(crate) fn check_limit(what: &'static str, length: u64, limit: u64) -> Result<(), ProtocolError> {
    if length > limit {
        return Err(ProtocolError::TooLong { what, length, limit });
    }
    Ok(())
}

/// Appends one frame to a buffer; the header's length is filled in at the end.
pub(crate) struct FrameWriter<'b> {
    out: &'b mut Vec<u8>,
    start: usize,
    kind: FrameKind,
}

impl<'b> FrameWriter<'b> {
    pub(crate) fn new(out: &'b mut Vec<u8>, kind: FrameKind) -> Self {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_LENGTH]);
        Self { out, start, kind }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.out.push(value);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_be_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_be_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_be_bytes());
    }

    pub(crate) fn name(&mut self, name: &str, what: &'static str) -> Result<(), ProtocolError> {
        check_limit(what, name.len() as u64, MAX_NAME_LENGTH as u64)?;
        self.count_u8(name.len(), what)?;
        self.bytes(name.as_bytes());
        Ok(())
    }

    /// A number of elements that is written as one byte.
    pub(crate) fn count_u8(&mut self, count: usize, what: &'static str) -> Result<(), ProtocolError> {
        let value = u8::try_from(count).map_err(|_| ProtocolError::Invalid { what })?;
        self.u8(value);
        Ok(())
    }

    /// Fills in the header.
    pub(crate) fn finish(self) -> Result<(), ProtocolError> {
        let length = self.out.len() - self.start - HEADER_LENGTH;
        check_limit("a frame's body", length as u64, MAX_BODY_LENGTH as u64)?;
        let length = u32::try_from(length).map_err(|_| ProtocolError::Invalid { what: "a frame's length" })?;
        let header = FrameHeader { kind: self.kind, length };
        if let Some(slot) = self.out.get_mut(self.start..self.start + HEADER_LENGTH) {
            slot.copy_from_slice(&header.to_bytes());
        }
        Ok(())
    }
}
