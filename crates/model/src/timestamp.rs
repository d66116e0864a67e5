//! Points in time and durations as MGN writes them: ISO 8601 texts, UTC.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime, UtcOffset};

/// A point in time with millisecond resolution, serialised like `2026-01-31T12:00:00.000Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp {
    unix_ms: i64,
}

impl Timestamp {
    /// From milliseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn from_unix_ms(unix_ms: i64) -> Self {
        Self { unix_ms }
    }

    /// Milliseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn unix_ms(self) -> i64 {
        self.unix_ms
    }

    /// From a time of the `time` crate; what is finer than a millisecond is cut off.
    #[must_use]
    pub fn from_datetime(datetime: OffsetDateTime) -> Self {
        let ms = datetime.unix_timestamp_nanos() / 1_000_000;
        Self { unix_ms: i64::try_from(ms).unwrap_or(i64::MAX) }
    }

    /// The time `ms` milliseconds later.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self { unix_ms: self.unix_ms.saturating_add_unsigned(ms) }
    }

    /// Milliseconds from `earlier` to this time; 0 when `earlier` is later.
    #[must_use]
    pub fn ms_since(self, earlier: Self) -> u64 {
        u64::try_from(self.unix_ms.saturating_sub(earlier.unix_ms)).unwrap_or(0)
    }

    /// The time since `earlier`, as MGN writes durations.
    #[must_use]
    pub fn since(self, earlier: Self) -> IsoDuration {
        IsoDuration { seconds: self.ms_since(earlier) / 1000 }
    }

    fn datetime(self) -> Option<OffsetDateTime> {
        let epoch = OffsetDateTime::UNIX_EPOCH;
        epoch.checked_add(Duration::milliseconds(self.unix_ms))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(d) = self.datetime() else {
            return write!(f, "{} ms", self.unix_ms);
        };
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            d.year(),
            u8::from(d.month()),
            d.day(),
            d.hour(),
            d.minute(),
            d.second(),
            d.millisecond()
        )
    }
}

impl std::str::FromStr for Timestamp {
    type Err = time::error::Parse;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::from_datetime(OffsetDateTime::parse(text, &Rfc3339)?.to_offset(UtcOffset::UTC)))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|e| serde::de::Error::custom(format!("`{text}` is not an RFC 3339 time: {e}")))
    }
}

/// A duration in whole seconds, serialised like `P0DT1H2M3S`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct IsoDuration {
    seconds: u64,
}

impl IsoDuration {
    /// From whole seconds.
    #[must_use]
    pub fn from_seconds(seconds: u64) -> Self {
        Self { seconds }
    }

    /// The duration in seconds.
    #[must_use]
    pub fn seconds(self) -> u64 {
        self.seconds
    }
}

impl fmt::Display for IsoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.seconds;
        write!(f, "P{}DT{}H{}M{}S", s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60)
    }
}

impl Serialize for IsoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IsoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_duration(&text).ok_or_else(|| serde::de::Error::custom(format!("`{text}` is not of the form P0DT0H0M0S")))
    }
}

fn parse_duration(text: &str) -> Option<IsoDuration> {
    let (days, rest) = text.strip_prefix('P')?.split_once("DT")?;
    let (hours, rest) = rest.split_once('H')?;
    let (minutes, rest) = rest.split_once('M')?;
    let seconds = rest.strip_suffix('S')?;
    let number = |part: &str| part.parse::<u64>().ok();
    let hours = number(days)?.checked_mul(24)?.checked_add(number(hours)?)?;
    let minutes = hours.checked_mul(60)?.checked_add(number(minutes)?)?;
    Some(IsoDuration { seconds: minutes.checked_mul(60)?.checked_add(number(seconds)?)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_survive_json() {
        let t = Timestamp::from_unix_ms(1_760_000_000_123);
        let json = serde_json::to_string(&t).unwrap();
        assert_eq!(json, "\"2025-10-09T08:53:20.123Z\"");
        assert_eq!(serde_json::from_str::<Timestamp>(&json).unwrap(), t);
    }

    #[test]
    fn other_offsets_are_read_as_the_same_instant() {
        let t: Timestamp = "2025-10-09T10:53:20.123+02:00".parse().unwrap();
        assert_eq!(t.unix_ms(), 1_760_000_000_123);
    }

    #[test]
    fn durations_survive_json() {
        let d = IsoDuration::from_seconds(2 * 86_400 + 3 * 3600 + 4 * 60 + 5);
        let json = serde_json::to_string(&d).unwrap();
        assert_eq!(json, "\"P2DT3H4M5S\"");
        assert_eq!(serde_json::from_str::<IsoDuration>(&json).unwrap(), d);
        assert!(serde_json::from_str::<IsoDuration>("\"P99999999999999999999DT0H0M0S\"").is_err());
    }

    #[test]
    fn elapsed_time_never_goes_negative() {
        let (a, b) = (Timestamp::from_unix_ms(1000), Timestamp::from_unix_ms(3500));
        assert_eq!(b.ms_since(a), 2500);
        assert_eq!(a.ms_since(b), 0);
        assert_eq!(b.since(a), IsoDuration::from_seconds(2));
    }
}
