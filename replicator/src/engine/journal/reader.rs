//! Reads records back, one after the other or wherever the index points.

use std::io;

use super::{
    format::{Kind, RECORD_HEADER, RecordHeader, Segment, TAG_LENGTH},
    storage::Storage,
};

/// How much is read at a time where records follow each other.
pub(super) const SEQUENTIAL: usize = 1 << 20;
/// The same where they may not.
pub(super) const SCATTERED: usize = 64 << 10;

/// Why there is no record.
#[derive(Debug)]
pub(super) enum ReadError {
    Io(io::Error),
    /// What lies there is not what was sealed there.
    Broken(&'static str),
}

/// Reads records through a window, and keeps the last one.
pub(super) struct Reader<'a> {
    storage: &'a dyn Storage,
    /// Nothing from here on is looked at.
    end: u64,
    ahead: usize,
    window: Vec<u8>,
    window_start: u64,
    record: Option<(u64, RecordHeader)>,
    body: Vec<u8>,
}

impl<'a> Reader<'a> {
    /// Reads what lies before `end`, at least `ahead` bytes at a time.
    pub(super) fn new(storage: &'a dyn Storage, end: u64, ahead: usize) -> Self {
        Self { storage, end, ahead, window: Vec::new(), window_start: 0, record: None, body: Vec::new() }
    }

    /// The header at a position; whether it is genuine shows when the record is opened.
    pub(super) fn header(&mut self, position: u64) -> Result<RecordHeader, ReadError> {
        let bytes = self.bytes(position, RECORD_HEADER)?;
        let header = bytes.first_chunk().and_then(RecordHeader::parse);
        header.ok_or(ReadError::Broken("no record begins here"))
    }

    /// The record at a position, which lies in one of `segments`.
    pub(super) fn record(&mut self, segments: &[Segment], position: u64) -> Result<(RecordHeader, &[u8]), ReadError> {
        if let Some((_, header)) = self.record.filter(|(at, _)| *at == position) {
            return Ok((header, &self.body));
        }
        let after = segments.partition_point(|segment| segment.start <= position);
        let segment = after.checked_sub(1).and_then(|at| segments.get(at));
        let segment = segment.ok_or(ReadError::Broken("it lies before the first segment"))?;
        let header = self.header(position)?;
        self.open(segment, position, header)?;
        Ok((header, &self.body))
    }

    /// Opens the record at a position, whose header is `header`.
    pub(super) fn open(&mut self, segment: &Segment, position: u64, header: RecordHeader) -> Result<&[u8], ReadError> {
        self.record = None;
        self.load(position, header)?;
        let tag = self.bytes(position + header.record_length() - TAG_LENGTH as u64, TAG_LENGTH)?;
        let tag: [u8; TAG_LENGTH] = *tag.first_chunk().ok_or(ReadError::Broken("it is cut off"))?;
        let opened = segment.open(header, position, &mut self.body, &tag);
        opened.ok_or(ReadError::Broken("its tag does not fit"))?;
        self.record = Some((position, header));
        Ok(&self.body)
    }

    /// The body of a segment's record, before there is a key for it.
    pub(super) fn clear_body(&mut self, position: u64, header: RecordHeader) -> Result<&[u8], ReadError> {
        debug_assert_eq!(header.kind, Kind::Segment);
        self.load(position, header)?;
        Ok(&self.body)
    }

    fn load(&mut self, position: u64, header: RecordHeader) -> Result<(), ReadError> {
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        let whole = usize::try_from(header.record_length()).unwrap_or(usize::MAX);
        // All of it at once, so that the window does not go back and forth.
        let record = self.bytes(position, whole)?;
        body.extend_from_slice(record.get(RECORD_HEADER..whole - TAG_LENGTH).unwrap_or_default());
        self.body = body;
        Ok(())
    }

    /// Exactly `length` bytes at `position`.
    fn bytes(&mut self, position: u64, length: usize) -> Result<&[u8], ReadError> {
        let cut = ReadError::Broken("it is cut off");
        let end = position.checked_add(length as u64).filter(|end| *end <= self.end);
        let Some(end) = end else { return Err(cut) };
        let inside = position >= self.window_start && end <= self.window_start + self.window.len() as u64;
        if !inside {
            self.fill(position, length.max(self.ahead)).map_err(ReadError::Io)?;
        }
        let from = usize::try_from(position - self.window_start).unwrap_or(usize::MAX);
        self.window.get(from..from.saturating_add(length)).ok_or(cut)
    }

    fn fill(&mut self, position: u64, length: usize) -> io::Result<()> {
        let most = usize::try_from(self.end - position).unwrap_or(usize::MAX);
        self.window.resize(length.min(most), 0);
        self.window_start = position;
        let count = self.storage.read_at(position, &mut self.window)?;
        self.window.truncate(count);
        Ok(())
    }
}
