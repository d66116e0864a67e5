//! Reads records back, one after the other or wherever the index points.

use std::io;

use rehost_direct::{ALIGNMENT, Aligned, BLOCK};

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
    /// Whole blocks, as direct I/O wants them.
    window: Aligned,
    /// Bytes of it that were read, and lie before the end.
    filled: usize,
    window_start: u64,
    /// Where the record lies whose body this is.
    record: Option<u64>,
    body: Vec<u8>,
}

impl<'a> Reader<'a> {
    /// Reads what lies before `end`, at least `ahead` bytes at a time.
    pub(super) fn new(storage: &'a dyn Storage, end: u64, ahead: usize) -> Self {
        let window = Aligned::zeroed(0);
        Self { storage, end, ahead, window, filled: 0, window_start: 0, record: None, body: Vec::new() }
    }

    /// The header at a position; whether it is genuine shows when the record is opened.
    pub(super) fn header(&mut self, position: u64) -> Result<RecordHeader, ReadError> {
        let bytes = self.bytes(position, RECORD_HEADER)?;
        let header = bytes.first_chunk().and_then(RecordHeader::parse);
        header.ok_or(ReadError::Broken("no record begins here"))
    }

    /// The body of the record at a position, which lies in one of `segments`.
    pub(super) fn record(&mut self, segments: &[Segment], position: u64) -> Result<&[u8], ReadError> {
        if self.record != Some(position) {
            let header = self.header(position)?;
            self.open(segment_of(segments, position)?, position, header)?;
        }
        Ok(&self.body)
    }

    /// Fills `target` with a part of a record's body; what is wanted whole is opened where it is
    /// wanted.
    pub(super) fn record_into(
        &mut self,
        segments: &[Segment],
        position: u64,
        skip: usize,
        target: &mut [u8],
    ) -> Result<(), ReadError> {
        let header = self.header(position)?;
        if self.record != Some(position) && skip == 0 && header.length as usize == target.len() {
            return self.open_into(segment_of(segments, position)?, position, header, target);
        }
        let body = self.record(segments, position)?;
        let wanted = body.get(skip..).and_then(|rest| rest.get(..target.len()));
        target.copy_from_slice(wanted.ok_or(ReadError::Broken("the index does not fit the journal"))?);
        Ok(())
    }

    /// Opens the record at a position, whose header is `header`.
    pub(super) fn open(&mut self, segment: &Segment, position: u64, header: RecordHeader) -> Result<&[u8], ReadError> {
        self.record = None;
        let mut body = std::mem::take(&mut self.body);
        body.resize(header.length as usize, 0);
        let opened = self.open_into(segment, position, header, &mut body);
        self.body = body;
        opened?;
        self.record = Some(position);
        Ok(&self.body)
    }

    fn open_into(
        &mut self,
        segment: &Segment,
        position: u64,
        header: RecordHeader,
        body: &mut [u8],
    ) -> Result<(), ReadError> {
        let (sealed, tag) = self.load(position, header)?;
        segment.open(header, position, (sealed, tag), body).ok_or(ReadError::Broken("its tag does not fit"))
    }

    /// The body of a segment's record, before there is a key for it.
    pub(super) fn clear_body(&mut self, position: u64, header: RecordHeader) -> Result<&[u8], ReadError> {
        debug_assert_eq!(header.kind, Kind::Segment);
        Ok(self.load(position, header)?.0)
    }

    /// What lies in the body's place, and the tag. All of it at once, so that the window does not go back and forth.
    fn load(&mut self, position: u64, header: RecordHeader) -> Result<(&[u8], &[u8; TAG_LENGTH]), ReadError> {
        let whole = usize::try_from(header.record_length()).unwrap_or(usize::MAX);
        let record = self.bytes(position, whole)?;
        let parts = record.get(RECORD_HEADER..).and_then(<[u8]>::split_last_chunk);
        parts.ok_or(ReadError::Broken("it is cut off"))
    }

    /// Exactly `length` bytes at `position`.
    fn bytes(&mut self, position: u64, length: usize) -> Result<&[u8], ReadError> {
        let cut = ReadError::Broken("it is cut off");
        let end = position.checked_add(length as u64).filter(|end| *end <= self.end);
        let Some(end) = end else { return Err(cut) };
        let inside = position >= self.window_start && end <= self.window_start + self.filled as u64;
        if !inside {
            self.fill(position, length.max(self.ahead)).map_err(ReadError::Io)?;
        }
        let from = usize::try_from(position - self.window_start).unwrap_or(usize::MAX);
        self.window.get(..self.filled).and_then(|read| read.get(from..from.saturating_add(length))).ok_or(cut)
    }

    fn fill(&mut self, position: u64, length: usize) -> io::Result<()> {
        let start = position / ALIGNMENT * ALIGNMENT;
        let most = usize::try_from(self.end - start).unwrap_or(usize::MAX);
        let wanted = length.saturating_add(BLOCK).min(most);
        let blocks = wanted.next_multiple_of(BLOCK);
        self.window.grow(blocks);
        self.filled = 0;
        self.window_start = start;
        let count = self.storage.read_at(start, self.window.get_mut(..blocks).unwrap_or_default())?;
        self.filled = count.min(most);
        Ok(())
    }
}

fn segment_of(segments: &[Segment], position: u64) -> Result<&Segment, ReadError> {
    let after = segments.partition_point(|segment| segment.start <= position);
    let segment = after.checked_sub(1).and_then(|at| segments.get(at));
    segment.ok_or(ReadError::Broken("it lies before the first segment"))
}
