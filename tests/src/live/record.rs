//! The records of the writer: lines of 128 bytes that are numbered from 1 and carry a checksum.
//!
//! ```text
//! 000000000042 1767225600000 <83 letters that follow from the number> 0123456789abcdef\n
//! ```
//!
//! 128 divides every block size: a record lies in one block, so that a copy of whole blocks has it whole or not at all.

use crate::error::{Error, Result};
use crate::random::Random;

/// Bytes of a record.
pub const RECORD_BYTES: usize = 128;
const CHECKSUM_BYTES: usize = 16;
const FILLER_BYTES: usize = RECORD_BYTES - (12 + 1 + 13 + 1 + 1 + CHECKSUM_BYTES + 1);

/// The record of this number, written at `unix_ms`.
#[must_use]
pub fn record(number: u64, unix_ms: u64) -> String {
    let head = format!("{number:012} {unix_ms:013} {} ", filler(number));
    let checksum = checksum(head.as_bytes());
    format!("{head}{checksum:016x}\n")
}

fn filler(number: u64) -> String {
    let mut random = Random::new(number);
    let letters = (0..FILLER_BYTES).map(|_| u8::try_from(random.below(26)).unwrap_or_default() + b'a');
    letters.map(char::from).collect()
}

/// FNV-1a: enough against blocks that are old, zero or of another file.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// How many records a file holds, if they are 1, 2, 3 … without a gap and each as it was written. At its end there may be the
/// beginning of one more, or zeros in its place: what a power cut may leave of a write that was not acknowledged.
///
/// # Errors
/// [`Error::Unexpected`] with the place of the first wrong record.
pub fn count(bytes: &[u8]) -> Result<u64> {
    let whole = bytes.chunks_exact(RECORD_BYTES);
    let mut records = 0;
    for (line, expected) in whole.zip(1..) {
        if !is_record(line, expected) {
            break;
        }
        records = expected;
    }
    let valid = usize::try_from(records).unwrap_or(usize::MAX).saturating_mul(RECORD_BYTES);
    let rest = bytes.get(valid..).unwrap_or_default();
    if is_torn(rest, records + 1) {
        return Ok(records);
    }
    let shown = String::from_utf8_lossy(rest.get(..RECORD_BYTES.min(rest.len())).unwrap_or_default()).into_owned();
    Err(Error::Unexpected(format!(
        "{records} records are right, and then {} bytes follow at offset {valid} that are not record {}: {shown:?}",
        rest.len(),
        records + 1
    )))
}

fn is_record(line: &[u8], number: u64) -> bool {
    let (head, tail) = line.split_at_checked(RECORD_BYTES - CHECKSUM_BYTES - 1).unwrap_or_default();
    let wanted = format!("{:016x}\n", checksum(head));
    head.starts_with(format!("{number:012} ").as_bytes()) && tail == wanted.as_bytes()
}

/// Whether the bytes are what may be there of the one record that was being written: its beginning, or zeros in its place.
fn is_torn(rest: &[u8], number: u64) -> bool {
    let begin = format!("{number:012} ");
    let common = begin.len().min(rest.len());
    let zeros = rest.len() <= RECORD_BYTES && rest.iter().all(|byte| *byte == 0);
    zeros || rest.len() < RECORD_BYTES && rest.get(..common) == begin.as_bytes().get(..common)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(count: u64) -> Vec<u8> {
        (1..=count).flat_map(|number| record(number, 1_700_000_000_000 + number).into_bytes()).collect()
    }

    #[test]
    fn whole_files_are_counted() {
        assert_eq!(record(7, 1).len(), RECORD_BYTES);
        assert_eq!(count(&file(0)).unwrap(), 0);
        assert_eq!(count(&file(1000)).unwrap(), 1000);
    }

    #[test]
    fn one_unacknowledged_record_may_be_torn_or_zero() {
        let mut torn = file(10);
        torn.extend_from_slice(&record(11, 5).as_bytes()[..50]);
        assert_eq!(count(&torn).unwrap(), 10);
        let mut zero = file(10);
        zero.extend_from_slice(&[0; RECORD_BYTES]);
        assert_eq!(count(&zero).unwrap(), 10);
    }

    #[test]
    fn gaps_old_blocks_and_flipped_bits_are_found() {
        let mut gap = file(10);
        gap.drain(3 * RECORD_BYTES..4 * RECORD_BYTES);
        let mut zeros = file(64);
        zeros[4096..].fill(0);
        let mut flipped = file(10);
        flipped[5 * RECORD_BYTES + 40] ^= 1;
        let mut stale = file(64);
        stale.copy_within(..4096, 4096);
        for wrong in [gap, zeros, flipped, stale] {
            count(&wrong).unwrap_err();
        }
    }
}
