//! `/etc/fstab`, line by line: what is not understood stays as it is.

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    /// What is mounted: a device, `UUID=…`, a share.
    pub(crate) device: &'a str,
    pub(crate) mount_point: &'a str,
    /// `ext4`, `swap`, `auto`, …
    pub(crate) kind: &'a str,
    pub(crate) options: &'a str,
}

impl<'a> Entry<'a> {
    /// The entry in a line; nothing for comments, blank lines and lines that are too short.
    #[must_use]
    pub(crate) fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split_whitespace();
        let device = fields.next().filter(|device| !device.starts_with('#'))?;
        let (mount_point, kind) = (fields.next()?, fields.next()?);
        Some(Self { device, mount_point, kind, options: fields.next().unwrap_or("defaults") })
    }

    /// Whether the options have this word.
    #[must_use]
    pub(crate) fn has_option(&self, option: &str) -> bool {
        self.options.split(',').any(|own| own == option)
    }
}

/// Every entry of a whole file.
pub(crate) fn entries(text: &str) -> impl Iterator<Item = Entry<'_>> {
    text.lines().filter_map(Entry::parse)
}

/// The line with its `index`-th field (from 0) replaced; blanks and the rest stay.
#[must_use]
pub(crate) fn with_field(line: &str, index: usize, value: &str) -> String {
    let (mut start, mut seen, mut inside) = (0, 0, false);
    for (at, c) in line.char_indices().chain([(line.len(), ' ')]) {
        if c.is_whitespace() && inside {
            if seen == index {
                return format!("{}{value}{}", &line[..start], &line[at..]);
            }
            seen += 1;
            inside = false;
        } else if !c.is_whitespace() && !inside {
            start = at;
            inside = true;
        }
    }
    // The fields before are there (the line was parsed): this one is left out and gets appended.
    format!("{line} {value}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read() {
        let text = "# /dev/sda1\n\n/dev/sda1\t/ ext4 noatime,nofail 0 1\nnas:/x /x nfs\ntoo short\n";
        let all: Vec<Entry<'_>> = entries(text).collect();
        assert_eq!(all.len(), 2);
        assert!(all[0].has_option("nofail") && !all[0].has_option("no"));
        assert_eq!((all[1].mount_point, all[1].options), ("/x", "defaults"));
    }

    #[test]
    fn fields_are_replaced_in_place() {
        assert_eq!(with_field("/dev/sda1\t/  ext4 x 0 1 # c", 0, "UUID=1"), "UUID=1\t/  ext4 x 0 1 # c");
        assert_eq!(with_field("  a b  c\td e", 3, "ü"), "  a b  c\tü e");
        assert_eq!(with_field("a b c", 2, "d"), "a b d");
        assert_eq!(with_field("a b c", 3, "d"), "a b c d");
    }
}
