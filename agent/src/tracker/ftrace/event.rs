//! What an ftrace instance says, as text.
//!
//! ```text
//!   block_rq_complete: 254,0 WS () 1234 + 8 [0]                  up to 6.5
//!   block_rq_complete: 254,0 WS () 1234 + 8 none,0,0 [0]         since
//!   CPU:1 [LOST 17 EVENTS]
//! ```

use super::ByteRange;

const EVENT: &str = "block_rq_complete: ";
const SECTOR: u64 = 512;

/// A line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Report {
    Completed(Event),
    /// Something that is counted elsewhere, or empty.
    Other,
    /// It cannot be understood: an event may be in it.
    Unknown,
}

/// A request that is complete.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) is_discard: bool,
    pub(super) range: ByteRange,
}

impl Report {
    pub(super) fn parse(line: &str) -> Self {
        // A process may be called like an event: the last name counts.
        match line.rsplit_once(EVENT) {
            Some((_, event)) => Event::parse(event).map_or(Self::Unknown, Self::Completed),
            None if line.trim().is_empty() || line.contains("[LOST ") => Self::Other,
            None => Self::Unknown,
        }
    }
}

impl Event {
    fn parse(text: &str) -> Option<Self> {
        let (device, rest) = text.split_once(' ')?;
        let (major, minor) = device.split_once(',')?;
        let (operation, _) = rest.split_once(' ')?;
        let (_, place) = rest.split_once(") ")?;
        let mut words = place.split_whitespace();
        let sector: u64 = words.next()?.parse().ok()?;
        words.next().filter(|plus| *plus == "+")?;
        let sectors: u64 = words.next()?.parse().ok()?;
        let range = ByteRange { offset: sector.checked_mul(SECTOR)?, length: sectors.checked_mul(SECTOR)? };
        let is_discard = operation.starts_with('D');
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()?, is_discard, range })
    }
}

/// The sum of these lines of a `stats` file, such as `overrun: 12`.
pub(super) fn counts(stats: &str, names: &[&str]) -> u64 {
    let lines = stats.lines().filter_map(|line| line.split_once(':'));
    let wanted = lines.filter(|(name, _)| names.contains(&name.trim()));
    wanted.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(offset: u64, length: u64, is_discard: bool) -> Report {
        Report::Completed(Event { major: 254, minor: 16, is_discard, range: ByteRange { offset, length } })
    }

    #[test]
    fn lines_of_old_and_new_kernels_are_understood() {
        let write = completed(2048 * 512, 4096, false);
        assert_eq!(Report::parse("block_rq_complete: 254,16 WS () 2048 + 8 [0]"), write);
        assert_eq!(Report::parse("block_rq_complete: 254,16 WFS () 2048 + 8 none,0,0 [0]"), write);
        assert_eq!(Report::parse(" a b-1 [001] d.h1. 4.2: block_rq_complete: 254,16 W () 2048 + 8 [0]"), write);
        assert_eq!(Report::parse("block_rq_complete: 254,16 DS () 0 + 16 none,0,0 [0]"), completed(0, 8192, true));
        let with_command = "block_rq_complete: 254,16 WS (2a 00 00) 2048 + 8 [0]";
        assert_eq!(Report::parse(with_command), write);
    }

    #[test]
    fn a_process_cannot_pass_for_an_event() {
        let line = "block_rq_complete: 1,1 W () 1 + 1-77 [0] 1.2: block_rq_complete: 254,16 W () 8 + 1 [0]";
        assert_eq!(Report::parse(line), completed(4096, 512, false));
    }

    #[test]
    fn what_is_not_understood_is_not_passed_over() {
        assert_eq!(Report::parse("CPU:1 [LOST 17 EVENTS]"), Report::Other);
        assert_eq!(Report::parse(""), Report::Other);
        for line in [
            "garbage",
            "block_rq_complete: ",
            "block_rq_complete: 254,16 WS () x + 8",
            "block_rq_complete: 1,2 W 3 + 4",
        ] {
            assert_eq!(Report::parse(line), Report::Unknown, "{line}");
        }
        let huge = "block_rq_complete: 254,16 WS () 18446744073709551615 + 8 [0]";
        assert_eq!(Report::parse(huge), Report::Unknown);
    }

    #[test]
    fn counts_are_added_up() {
        let stats = "entries: 7\noverrun: 3\ncommit overrun: 2\nbytes: 99\ndropped events: 1\n";
        assert_eq!(counts(stats, &["entries"]), 7);
        assert_eq!(counts(stats, &["overrun", "commit overrun", "dropped events"]), 6);
    }
}
