//! Names of block devices, as EC2 wants them although Nitro instances show volumes as NVMe devices.

use std::collections::BTreeSet;

use rehost_model::VolumeId;

/// The root device of images.
pub(crate) const ROOT_DEVICE: &str = "/dev/sda1";

/// Names for data volumes, those that EC2's user guide recommends first ("Device names for volumes on Amazon EC2 instances"):
/// `/dev/sdf` to `/dev/sdp`, then `/dev/xvdba` to `/dev/xvddz`. 89, more than any instance type takes volumes.
pub(crate) fn data_devices() -> impl Iterator<Item = String> + Clone {
    let letters = |from: char, to: char| (from..=to).collect::<Vec<_>>().into_iter();
    let first = letters('f', 'p').map(|letter| format!("/dev/sd{letter}"));
    let further = letters('b', 'd')
        .flat_map(move |group| letters('a', 'z').map(move |letter| format!("/dev/xvd{group}{letter}")));
    first.chain(further)
}

/// A name that is free on an instance with these. Volumes that are attached at the same moment begin to look at different
/// places, so that they seldom choose the same name; EC2 refuses the second of two that do.
pub(crate) fn free_device(taken: &BTreeSet<String>, volume: &VolumeId) -> Option<String> {
    let count = data_devices().count();
    let start = volume.as_str().bytes().fold(0_usize, |sum, byte| (sum * 31 + usize::from(byte)) % count);
    data_devices().cycle().skip(start).take(count).find(|device| !taken.contains(device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_enough_for_any_server() {
        let names: BTreeSet<String> = data_devices().collect();
        assert_eq!(names.len(), data_devices().count());
        assert!(names.len() >= rehost_model::settings::MAX_DISKS_PER_SERVER);
        assert_eq!(data_devices().next().as_deref(), Some("/dev/sdf"));
        assert!(!names.contains(ROOT_DEVICE));
    }

    #[test]
    fn a_free_name_is_found_until_there_is_none() {
        let mut taken = BTreeSet::new();
        while let Some(device) = free_device(&taken, &VolumeId::generate()) {
            assert!(taken.insert(device));
        }
        assert_eq!(taken.len(), data_devices().count());
    }
}
