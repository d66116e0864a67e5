//! Where the volume of an assignment is found on this machine.
//!
//! A location is a path, or `nvme:SERIAL`: the NVMe disk with that serial number, which on EC2 is the volume's id without its hyphen.
//! The kernel's name of such a disk is of no use to anybody else: it depends on the order in which the disks came. With a directory of
//! volumes, as emulators of EC2 have one, an NVMe disk is the file there that is named by the volume's id.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use rehost_model::ServerId;
use rehost_model::link::ReportedError;
use rehost_model::replicator::Assignment;

/// Begins the location of an NVMe disk; its serial number follows.
const NVME: &str = "nvme:";

/// Why a volume is not found; it may come later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LocationError {
    #[error(
        "no NVMe disk has the serial number {serial} of the volume {volume} yet; it is looked for again: see whether EC2 has attached it"
    )]
    NoDisk { volume: String, serial: String },
    #[error("there is no {} for the volume {volume} yet; it is looked for again", path.display())]
    NoFile { volume: String, path: PathBuf },
    #[error("the volume {volume} is to be on the NVMe disk {serial}, which is that of another volume")]
    OtherVolume { volume: String, serial: String },
}

/// Finds volumes.
#[derive(Debug, Clone)]
pub(crate) struct Locations {
    /// Has the volumes as files named by their ids, in place of NVMe disks.
    volumes: Option<PathBuf>,
    /// `/sys` and `/dev`.
    sys: PathBuf,
    dev: PathBuf,
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// With paths as locations. A server whose volumes are not all there has none among them: the checkpoint of a part is none.
    pub(crate) assignments: Vec<Assignment>,
    /// By server, why its volumes are not among them.
    pub(crate) missing: BTreeMap<ServerId, ReportedError>,
}

impl Locations {
    pub(crate) fn new(volumes: Option<PathBuf>) -> Self {
        Self { volumes, sys: "/sys".into(), dev: "/dev".into() }
    }

    /// Looks for the volumes of these assignments.
    pub(crate) fn find(&self, assignments: &[Assignment]) -> Found {
        let mut found = Found::default();
        for assignment in assignments {
            match self.path(assignment) {
                Ok(location) => found.assignments.push(Assignment { location, ..assignment.clone() }),
                Err(error) => {
                    let error = ReportedError { code: "VolumeNotAttached".to_owned(), message: error.to_string() };
                    found.missing.entry(assignment.server.clone()).or_insert(error);
                }
            }
        }
        let incomplete: BTreeSet<ServerId> = found.missing.keys().cloned().collect();
        found.assignments.retain(|assignment| !incomplete.contains(&assignment.server));
        found
    }

    fn path(&self, assignment: &Assignment) -> Result<String, LocationError> {
        let Some(serial) = assignment.location.strip_prefix(NVME) else { return Ok(assignment.location.clone()) };
        let (volume, serial) = (assignment.volume.to_string(), serial.to_owned());
        if plain(&serial) != assignment.volume.nvme_serial() {
            return Err(LocationError::OtherVolume { volume, serial });
        }
        let path = match &self.volumes {
            Some(volumes) => {
                let path = volumes.join(&volume);
                path.exists().then(|| path.clone()).ok_or(LocationError::NoFile { volume, path })?
            }
            None => self.disk(&serial).ok_or(LocationError::NoDisk { volume, serial })?,
        };
        Ok(path.display().to_string())
    }

    /// The device of the NVMe disk with this serial number.
    fn disk(&self, serial: &str) -> Option<PathBuf> {
        let controllers = fs::read_dir(self.sys.join("class/nvme")).ok()?.flatten();
        let mut of_serial = controllers.map(|entry| entry.path()).filter(|controller| {
            let own = fs::read_to_string(controller.join("serial")).unwrap_or_default();
            plain(&own) == plain(serial)
        });
        let device = self.dev.join(namespace(&of_serial.next()?)?);
        device.exists().then_some(device)
    }
}

/// Some EBS volumes say their serial number with the hyphen of the id.
fn plain(serial: &str) -> String {
    serial.trim().replace('-', "")
}

/// The first disk of a controller: an EBS volume has one.
fn namespace(controller: &Path) -> Option<String> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    let is_disk = |name: &String| {
        let numbers = name.strip_prefix("nvme").and_then(|rest| rest.split_once('n'));
        numbers.is_some_and(|(controller, namespace)| is_number(controller) && is_number(namespace))
    };
    let names = fs::read_dir(controller).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(is_disk).min()
}

#[cfg(test)]
mod tests {
    use rehost_model::VolumeId;

    use super::*;

    fn assignment(server: &ServerId, location: Option<&str>) -> Assignment {
        let volume = VolumeId::generate();
        let location = location.map_or_else(|| format!("{NVME}{}", volume.nvme_serial()), str::to_owned);
        Assignment { server: server.clone(), volume, size_bytes: 4096, location, initialized: false }
    }

    /// A machine with the NVMe disks that are attached to it.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(machine.0.path().join("dev")).unwrap();
            machine
        }

        fn attach(&self, number: usize, serial: &str) {
            let controller = self.0.path().join(format!("sys/class/nvme/nvme{number}"));
            fs::create_dir_all(controller.join(format!("nvme{number}n1"))).unwrap();
            fs::create_dir_all(controller.join("power")).unwrap();
            fs::write(controller.join("serial"), format!("{serial}\n")).unwrap();
            fs::write(self.0.path().join(format!("dev/nvme{number}n1")), "").unwrap();
        }

        fn locations(&self) -> Locations {
            Locations { volumes: None, sys: self.0.path().join("sys"), dev: self.0.path().join("dev") }
        }
    }

    #[test]
    fn a_disk_is_found_by_its_serial_number_in_either_form() {
        let (machine, server) = (Machine::new(), ServerId::generate());
        let wanted = [assignment(&server, None), assignment(&server, None)];
        machine.attach(0, "vol00000000000000000");
        machine.attach(2, &wanted[0].volume.nvme_serial());
        machine.attach(1, wanted[1].volume.as_str());
        let found = machine.locations().find(&wanted);
        let devices: Vec<_> = found.assignments.iter().map(|a| a.location.rsplit('/').next().unwrap()).collect();
        assert_eq!(devices, ["nvme2n1", "nvme1n1"]);
        assert!(found.missing.is_empty());
    }

    #[test]
    fn a_server_waits_for_all_of_its_volumes() {
        let (machine, server, other) = (Machine::new(), ServerId::generate(), ServerId::generate());
        let wanted = [assignment(&server, None), assignment(&server, None), assignment(&other, Some("/volumes/a"))];
        machine.attach(1, &wanted[0].volume.nvme_serial());
        let found = machine.locations().find(&wanted);
        assert_eq!(found.assignments, wanted[2..], "a path is taken as it is");
        let error = &found.missing[&server];
        assert_eq!(error.code, "VolumeNotAttached");
        assert!(error.message.contains(wanted[1].volume.as_str()), "{error:?}");
        machine.attach(3, &wanted[1].volume.nvme_serial());
        assert_eq!(machine.locations().find(&wanted).assignments.len(), 3);
    }

    #[test]
    fn volumes_may_be_files_of_a_directory() {
        let (directory, server) = (tempfile::tempdir().unwrap(), ServerId::generate());
        let wanted = [assignment(&server, None)];
        let locations = Locations::new(Some(directory.path().to_owned()));
        assert!(locations.find(&wanted).assignments.is_empty());
        let path = directory.path().join(wanted[0].volume.as_str());
        fs::write(&path, "").unwrap();
        assert_eq!(locations.find(&wanted).assignments[0].location, path.display().to_string());
    }

    #[test]
    fn anothers_disk_is_not_taken() {
        let (machine, server) = (Machine::new(), ServerId::generate());
        let wanted = [assignment(&server, Some("nvme:vol00000000000000000"))];
        machine.attach(1, "vol00000000000000000");
        let found = machine.locations().find(&wanted);
        assert!(found.missing[&server].message.contains("another volume"));
    }
}
