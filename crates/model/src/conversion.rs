//! What a conversion server is asked, what it reports, and how the report travels.
//!
//! The request is one argument of the conversion machine's kernel command line (`rehost.request=`, JSON in hexadecimal):
//! the initramfs is then the same for every conversion and can be kept. The report comes back as text on a serial line, which has
//! no end of file and no checksum; therefore it is framed by two marker lines and carries its own length and checksum:
//!
//! ```text
//! -----BEGIN REHOST REPORT-----
//! length=1234 crc32=89abcdef
//! {"schemaVersion":1,…}                 (one line, `length` bytes)
//! -----END REHOST REPORT-----
//! ```
//!
//! Whatever else is printed on the line before or after the frame is ignored.

use serde::{Deserialize, Serialize};

use crate::launch::BootMode;

/// Version of [`ConversionReport`]'s and [`ConversionRequest`]'s shapes.
pub const SCHEMA_VERSION: u32 = 1;

/// The argument of the conversion machine's kernel command line that carries the request.
pub const REQUEST_ARGUMENT: &str = "rehost.request=";

/// x86 kernels cut their command line at 2048 bytes; the rest of it needs some of them.
pub const MAX_REQUEST_ARGUMENT: usize = 1600;

const BEGIN: &str = "-----BEGIN REHOST REPORT-----";
const END: &str = "-----END REHOST REPORT-----";
/// A report larger than this is taken for garbage.
const MAX_REPORT: usize = 4 << 20;

/// What the converted server shall boot on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ConversionTarget {
    /// EC2 on Nitro: NVMe and ENA (and Xen's devices for older instance types).
    Ec2,
    /// A QEMU/KVM machine: NVMe or virtio disks, virtio-net or e1000.
    #[default]
    Qemu,
}

/// One attached volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestedDisk {
    /// Serial number of the NVMe device it is attached as: see [`crate::VolumeId::nvme_serial`].
    pub serial: String,
    /// What the source calls this disk, such as `/dev/sda`: the names in its `/etc/fstab` are resolved by it.
    pub source_device: Option<String>,
}

/// What a conversion server is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConversionRequest {
    pub schema_version: u32,
    pub target: ConversionTarget,
    pub boot_mode: BootMode,
    /// The server's volumes in the order of its disks, the boot disk first.
    pub disks: Vec<RequestedDisk>,
    /// Only find out what would be done.
    pub dry_run: bool,
}

impl ConversionRequest {
    /// A request for a real conversion.
    #[must_use]
    pub fn new(target: ConversionTarget, boot_mode: BootMode, disks: Vec<RequestedDisk>) -> Self {
        Self { schema_version: SCHEMA_VERSION, target, boot_mode, disks, dry_run: false }
    }

    /// The argument for the conversion machine's kernel command line, [`REQUEST_ARGUMENT`] included.
    ///
    /// # Errors
    /// [`RequestError::TooLong`] when it would not fit (some fifteen disks with long names do).
    pub fn to_kernel_argument(&self) -> Result<String, RequestError> {
        let json = serde_json::to_vec(self)?;
        let argument: String = REQUEST_ARGUMENT.chars().chain(json.iter().flat_map(|byte| hex_digits(*byte))).collect();
        if argument.len() > MAX_REQUEST_ARGUMENT { Err(RequestError::TooLong(argument.len())) } else { Ok(argument) }
    }

    /// The request in a kernel command line.
    ///
    /// # Errors
    /// [`RequestError`] when there is none, or none of this schema version.
    pub fn from_kernel_command_line(line: &str) -> Result<Self, RequestError> {
        let hex = line.split_whitespace().find_map(|word| word.strip_prefix(REQUEST_ARGUMENT));
        let bytes = decode_hex(hex.ok_or(RequestError::Missing)?).ok_or(RequestError::NotHex)?;
        let request: Self = serde_json::from_slice(&bytes)?;
        if request.schema_version == SCHEMA_VERSION {
            Ok(request)
        } else {
            Err(RequestError::Version(request.schema_version))
        }
    }
}

/// Why a request cannot be sent or understood.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("the kernel command line has no `{REQUEST_ARGUMENT}`: start the conversion machine with one")]
    Missing,
    #[error("`{REQUEST_ARGUMENT}` is not hexadecimal: write it with ConversionRequest::to_kernel_argument")]
    NotHex,
    #[error(
        "the request takes {0} bytes of the kernel command line and may take {MAX_REQUEST_ARGUMENT}: convert fewer disks at once"
    )]
    TooLong(usize),
    #[error(
        "the request has schema version {0} and this converter knows {SCHEMA_VERSION}: use the same release of both"
    )]
    Version(u32),
    #[error("the request is not valid: {0}")]
    Json(#[from] serde_json::Error),
}

/// How a conversion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ConversionOutcome {
    /// The guest was edited and is ready for its target.
    Converted,
    /// The guest was ready already; nothing was edited.
    Unchanged,
    /// A guest of a kind that cannot be converted; nothing was edited.
    Unsupported,
    /// Something went wrong; the findings say what and whether anything was edited.
    Failed,
}

impl ConversionOutcome {
    /// Whether the volumes can be launched.
    #[must_use]
    pub fn is_launchable(self) -> bool {
        matches!(self, Self::Converted | Self::Unchanged)
    }
}

/// What the firmware of the guest's machine starts it with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Firmware {
    Bios,
    Uefi,
}

/// How a disk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PartitionTable {
    Mbr,
    Gpt,
    /// A file system on the whole disk, or nothing.
    None,
}

/// One partition, or the whole disk where it has no partition table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartitionInventory {
    /// Number as the kernel counts it; 0 is the whole disk.
    pub number: u32,
    pub bytes: u64,
    /// `ext4`, `vfat`, `swap`, `xfs`, `btrfs`, `LVM2_member`, `crypto_LUKS`, … as blkid says it.
    pub content: Option<String>,
    pub uuid: Option<String>,
    pub label: Option<String>,
}

/// One disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskInventory {
    pub source_device: Option<String>,
    pub bytes: u64,
    pub partition_table: PartitionTable,
    pub partitions: Vec<PartitionInventory>,
}

/// What was found on the volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GuestInventory {
    /// `ID` of os-release.
    pub os_id: Option<String>,
    /// `VERSION_ID` of os-release.
    pub os_version: Option<String>,
    /// `PRETTY_NAME` of os-release.
    pub os_name: Option<String>,
    /// Versions of the installed kernels.
    pub kernels: Vec<String>,
    /// `x86_64`, `aarch64`, … from the guest's own programs.
    pub architecture: Option<String>,
    pub firmware: Option<Firmware>,
    /// Of the disk that has the root file system.
    pub partition_table: Option<PartitionTable>,
    /// The root file system in the source's words, such as `/dev/sda1`.
    pub root_device: Option<String>,
    pub root_filesystem: Option<String>,
    pub root_filesystem_uuid: Option<String>,
    /// `grub`.
    pub bootloader: Option<String>,
    /// `initramfs-tools`, `dracut`, or nothing that is known.
    pub initramfs_tool: Option<String>,
    /// `ifupdown`, `netplan`, `systemd-networkd`, `NetworkManager`, in the order of what is configured.
    pub network: Vec<String>,
    pub disks: Vec<DiskInventory>,
}

/// One thing that was done, or in a dry run would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Action {
    /// The rule that asked for it.
    pub rule: String,
    pub description: String,
    /// In the guest's file tree.
    pub path: String,
    /// Where the original is kept, in the guest's file tree.
    pub backup: Option<String>,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Severity {
    /// Good to know.
    Info,
    /// The copy boots, but something of it may not work.
    Warning,
    /// The copy cannot be made to boot.
    Error,
}

/// Something that a person should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub severity: Severity,
    pub rule: String,
    pub cause: String,
    pub remedy: String,
}

impl Finding {
    #[must_use]
    pub fn new(severity: Severity, rule: &str, cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity, rule: rule.to_owned(), cause: cause.into(), remedy: remedy.into() }
    }
}

/// What a conversion found, did and could not do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConversionReport {
    pub schema_version: u32,
    pub outcome: ConversionOutcome,
    pub dry_run: bool,
    pub guest: Option<GuestInventory>,
    pub actions: Vec<Action>,
    pub findings: Vec<Finding>,
    /// Of the converter alone, without its machine's boot.
    pub duration_ms: u64,
}

impl ConversionReport {
    /// A report that says nothing but how the conversion ended and why.
    #[must_use]
    pub fn ended(outcome: ConversionOutcome, finding: Finding) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            outcome,
            dry_run: false,
            guest: None,
            actions: Vec::new(),
            findings: vec![finding],
            duration_ms: 0,
        }
    }

    /// The first finding that explains why the conversion did not succeed, as one line: cause and remedy.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        let worst = self.findings.iter().find(|finding| finding.severity == Severity::Error)?;
        Some(format!("{} ({}): {}", worst.cause, worst.rule, worst.remedy))
    }
}

/// Why there is no report in what a conversion machine printed.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("the conversion machine wrote no report: it did not reach its end; see its console")]
    Missing,
    #[error("the conversion machine's report is cut off or damaged ({0}): run the conversion again")]
    Damaged(&'static str),
    #[error("the conversion machine's report cannot be read: {0}: use the same release of both")]
    Json(#[from] serde_json::Error),
}

/// The report as the conversion machine writes it to its serial line (newline-terminated lines).
///
/// # Errors
/// Never for a report made of this module's types; JSON's own errors are passed on.
pub fn frame_report(report: &ConversionReport) -> Result<String, ReportError> {
    let json = serde_json::to_string(report)?;
    Ok(format!("\n{BEGIN}\nlength={} crc32={:08x}\n{json}\n{END}\n", json.len(), crc32(json.as_bytes())))
}

/// The report in everything that a conversion machine printed on its serial line: the last whole one counts.
///
/// # Errors
/// [`ReportError`] when there is none, or it is cut off, damaged or of another schema.
pub fn parse_framed_report(printed: &[u8]) -> Result<ConversionReport, ReportError> {
    let start = rfind(printed, BEGIN.as_bytes()).ok_or(ReportError::Missing)?;
    let mut lines = printed.get(start..).unwrap_or_default().split(|byte| *byte == b'\n').map(trim_carriage_return);
    lines.next();
    let header = lines.next().and_then(|line| std::str::from_utf8(line).ok()).and_then(parse_header);
    let (length, checksum) = header.ok_or(ReportError::Damaged("its header line"))?;
    let json = lines.next().ok_or(ReportError::Damaged("no content"))?;
    if json.len() != length || crc32(json) != checksum {
        return Err(ReportError::Damaged("length or checksum"));
    }
    if lines.next() != Some(END.as_bytes()) {
        return Err(ReportError::Damaged("no end marker"));
    }
    Ok(serde_json::from_slice(json)?)
}

fn parse_header(line: &str) -> Option<(usize, u32)> {
    let (length, checksum) = line.split_once(' ')?;
    let length: usize = length.strip_prefix("length=")?.parse().ok()?;
    let checksum = u32::from_str_radix(checksum.strip_prefix("crc32=")?, 16).ok()?;
    (length <= MAX_REPORT).then_some((length, checksum))
}

/// A serial console ends its lines with carriage return and newline.
fn trim_carriage_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn rfind(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).rposition(|window| window == needle)
}

/// CRC-32 (IEEE 802.3), bit by bit: a report is a few KiB.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

fn hex_digits(byte: u8) -> [char; 2] {
    [byte >> 4, byte & 0x0f].map(|digit| char::from_digit(u32::from(digit), 16).unwrap_or('0'))
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(disks: usize) -> ConversionRequest {
        let disk =
            |n| RequestedDisk { serial: format!("vol0000000000000000{n}"), source_device: Some(format!("/dev/sd{n}")) };
        ConversionRequest::new(ConversionTarget::Qemu, BootMode::UseSource, (0..disks).map(disk).collect())
    }

    fn report() -> ConversionReport {
        let finding = Finding::new(Severity::Warning, "fstab", "ein Gerät fehlt: \"/dev/sdb1\"\n", "nofail");
        ConversionReport::ended(ConversionOutcome::Converted, finding)
    }

    #[test]
    fn request_travels_on_a_kernel_command_line() {
        let argument = request(2).to_kernel_argument().unwrap();
        let line = format!("console=ttyS0 quiet {argument} panic=-1\n");
        assert_eq!(ConversionRequest::from_kernel_command_line(&line).unwrap(), request(2));
    }

    #[test]
    fn bad_requests_are_refused() {
        let parse = ConversionRequest::from_kernel_command_line;
        assert!(matches!(parse("quiet"), Err(RequestError::Missing)));
        assert!(matches!(parse("rehost.request=7"), Err(RequestError::NotHex)));
        assert!(matches!(parse("rehost.request=zz"), Err(RequestError::NotHex)));
        assert!(matches!(parse("rehost.request=7b7d"), Err(RequestError::Json(_))));
        assert!(matches!(request(60).to_kernel_argument(), Err(RequestError::TooLong(_))));
        let other = ConversionRequest { schema_version: 9, ..request(1) }.to_kernel_argument().unwrap();
        assert!(matches!(parse(&other), Err(RequestError::Version(9))));
    }

    #[test]
    fn report_survives_a_serial_line() {
        let framed = frame_report(&report()).unwrap();
        let printed = format!("[    0.1] noise\r\n{}\r\nreboot: Power down\r\n", framed.replace('\n', "\r\n"));
        assert_eq!(parse_framed_report(printed.as_bytes()).unwrap(), report());
    }

    #[test]
    fn no_prefix_of_a_report_passes_for_a_whole_one() {
        let framed = frame_report(&report()).unwrap();
        for cut in 0..framed.len() - 1 {
            assert!(parse_framed_report(&framed.as_bytes()[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_damaged_byte_is_noticed() {
        let framed = frame_report(&report()).unwrap();
        let json = framed.find('{').unwrap();
        let mut damaged = framed.into_bytes();
        damaged[json + 5] ^= 1;
        assert!(matches!(parse_framed_report(&damaged), Err(ReportError::Damaged(_))));
    }

    #[test]
    fn checksum_is_the_common_crc32() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
