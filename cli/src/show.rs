//! Text for people: aligned tables, sizes, durations.

use std::fmt::Write as _;

/// Rows of cells, shown with aligned columns.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Vec<String>>);

impl Table {
    /// A table with this head.
    pub(crate) fn new(head: &[&str]) -> Self {
        Self(vec![head.iter().map(|&cell| cell.to_owned()).collect()])
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.0.push(cells);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| self.0.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
        let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        for row in &self.0 {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// Labelled lines, shown with aligned values; empty values are left out.
#[derive(Debug, Default)]
pub(crate) struct Facts(Vec<(&'static str, String)>);

impl Facts {
    /// Adds a line.
    pub(crate) fn add(&mut self, label: &'static str, value: impl Into<String>) {
        self.0.push((label, value.into()));
    }

    /// Adds a line if there is a value.
    pub(crate) fn add_some(&mut self, label: &'static str, value: Option<impl Into<String>>) {
        self.add(label, value.map(Into::into).unwrap_or_default());
    }
}

impl std::fmt::Display for Facts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = || self.0.iter().filter(|(_, value)| !value.is_empty());
        let width = shown().map(|(label, _)| label.len()).max().unwrap_or(0);
        for (label, value) in shown() {
            let mut lines = value.lines();
            writeln!(f, "{label:width$}  {}", lines.next().unwrap_or_default())?;
            for line in lines {
                writeln!(f, "{:width$}  {line}", "")?;
            }
        }
        Ok(())
    }
}

/// A number of bytes, such as `1.5 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // In tenths, rounded down, so that nothing looks complete before it is.
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while tenths >= 10_240
        && let Some(larger) = units.next()
    {
        tenths /= 1024;
        unit = Some(larger);
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, unit.unwrap_or(&""))
}

/// How much of `total` is done, in whole percent, rounded down; 100 only when all is done.
pub(crate) fn percent(done: u64, total: u64) -> u64 {
    if total == 0 {
        return 0;
    }
    let percent = u128::from(done.min(total)) * 100 / u128::from(total);
    u64::try_from(percent).unwrap_or(100)
}

/// Seconds, such as `2h 05m` or `12s`.
pub(crate) fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m {:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h {minutes:02}m"),
        _ => format!("{days}d {hours:02}h"),
    }
}

/// MGN's text of a duration, such as `P0DT0H1M5S`, as [`duration`] writes it; unknown texts stay as they are.
pub(crate) fn iso_duration(text: &str) -> String {
    let parsed = serde_json::from_value::<rehost_model::IsoDuration>(text.into());
    parsed.map_or_else(|_| text.to_owned(), |d| duration(d.seconds()))
}

/// MGN's text of a time without its fraction, such as `2026-01-31 12:00:00Z`.
pub(crate) fn time(text: &str) -> String {
    match text.parse::<rehost_model::Timestamp>() {
        Ok(time) => {
            let mut whole = time.to_string();
            whole.truncate(19);
            let _ = write!(whole, "Z");
            whole.replacen('T', " ", 1)
        }
        Err(_) => text.to_owned(),
    }
}

/// The first `limit` characters of the first line, with an ellipsis if something is left out.
pub(crate) fn brief(text: &str, limit: usize) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= limit && line.len() == text.trim_end().len() {
        return line.to_owned();
    }
    let mut short: String = line.chars().take(limit.saturating_sub(1)).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_humane_and_never_too_large() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 30) - 1, "1023.9 MiB"),
            (1 << 30, "1.0 GiB"),
            (20 << 40, "20.0 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert!(size(u64::MAX).ends_with("PiB"));
    }

    #[test]
    fn only_what_is_complete_has_a_hundred_percent() {
        assert_eq!(percent(999, 1000), 99);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
        assert_eq!(percent(0, 0), 0);
    }

    #[test]
    fn durations_and_times_are_short() {
        assert_eq!(iso_duration("P0DT0H1M5S"), "1m 05s");
        assert_eq!(iso_duration("P2DT3H0M5S"), "2d 03h");
        assert_eq!(iso_duration("soon"), "soon");
        assert_eq!(time("2026-01-31T12:00:00.123Z"), "2026-01-31 12:00:00Z");
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_blanks() {
        let mut table = Table::new(&["ID", "STATE"]);
        table.row(vec!["s-1".to_owned(), String::new()]);
        table.row(vec!["s-1234".to_owned(), "TESTING".to_owned()]);
        assert_eq!(table.to_string(), "ID      STATE\ns-1\ns-1234  TESTING\n");
    }

    #[test]
    fn facts_without_a_value_are_left_out() {
        let mut facts = Facts::default();
        facts.add("a", "1\n2");
        facts.add_some("empty", None::<String>);
        facts.add("long", "3");
        assert_eq!(facts.to_string(), "a     1\n      2\nlong  3\n");
    }

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(brief("short", 10), "short");
        assert_eq!(brief("rather long", 7), "rather…");
        assert_eq!(brief("two\nlines", 10), "two…");
    }
}
