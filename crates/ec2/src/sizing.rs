//! Right-sizing `BASIC`: the smallest current instance type that a copy fits on.
//!
//! Small is what costs little. On-demand prices of one generation follow vCPUs and memory closely; one vCPU costs about as much
//! as ten GiB. That weighs types against each other without a table of prices, which differ between regions and change.

use std::collections::BTreeSet;

use aws_sdk_ec2::types::{
    ArchitectureType, BootModeType, InstanceType, InstanceTypeHypervisor, InstanceTypeInfo, RootDeviceType,
    UsageClassType,
};
use rehost_model::link::BootFirmware;

/// So much memory costs about as much as one vCPU; MiB.
const MIB_PER_VCPU: i64 = 10 << 10;

/// A larger machine is not to run on CPU credits: from here on, types that do come last among those of one size; vCPUs.
const BURSTABLE_UP_TO_VCPUS: i32 = 2;

/// Families that are chosen before others of the same size: everywhere to be had, and without anything special.
const PREFERRED_FAMILIES: [&str; 12] = ["t3", "m7i", "c7i", "r7i", "m6i", "c6i", "r6i", "m5", "c5", "r5", "m7a", "t3a"];

/// What a copy needs of its instance type.
#[derive(Debug, Clone)]
pub(crate) struct Need<'a> {
    pub(crate) cpus: u64,
    pub(crate) ram_bytes: u64,
    pub(crate) firmware: BootFirmware,
    pub(crate) volumes: usize,
    /// The types that its availability zone offers; `None` where the zone is not known.
    pub(crate) offered: Option<&'a BTreeSet<String>>,
}

/// The smallest of these types that suits; of several, the one that a fixed order prefers. The order of `types` is of no account.
pub(crate) fn smallest(types: &[InstanceTypeInfo], need: &Need<'_>) -> Option<InstanceType> {
    let suitable = types.iter().filter(|info| is_plain(info) && boots(info, need.firmware) && has_room(info, need));
    let best = suitable.min_by_key(|info| order(info))?;
    best.instance_type().cloned()
}

/// A current x86 type on Nitro without anything that costs extra: accelerators, local disks, bare metal.
fn is_plain(info: &InstanceTypeInfo) -> bool {
    let processor = info.processor_info();
    let accelerated = info.gpu_info().is_some()
        || info.fpga_info().is_some()
        || info.inference_accelerator_info().is_some()
        || info.media_accelerator_info().is_some()
        || info.neuron_info().is_some();
    info.current_generation() == Some(true)
        && info.hypervisor() == Some(&InstanceTypeHypervisor::Nitro)
        && info.bare_metal() != Some(true)
        && info.instance_storage_supported() != Some(true)
        && info.supported_root_device_types().contains(&RootDeviceType::Ebs)
        && info.supported_usage_classes().contains(&UsageClassType::OnDemand)
        && processor.is_some_and(|p| p.supported_architectures().contains(&ArchitectureType::X8664))
        && !accelerated
}

fn boots(info: &InstanceTypeInfo, firmware: BootFirmware) -> bool {
    let mode = match firmware {
        BootFirmware::Bios => BootModeType::LegacyBios,
        BootFirmware::Uefi => BootModeType::Uefi,
    };
    info.supported_boot_modes().contains(&mode)
}

fn has_room(info: &InstanceTypeInfo, need: &Need<'_>) -> bool {
    let enough = |has: i64, wanted: u64| u64::try_from(has).is_ok_and(|has| has >= wanted);
    let memory = enough(memory_mib(info), need.ram_bytes.div_ceil(1 << 20));
    // Many types count network interfaces among the attachments; a copy has one.
    let attachments = info.ebs_info().and_then(|ebs| ebs.maximum_ebs_attachments()).unwrap_or(i32::MAX);
    let attaches = usize::try_from(attachments).is_ok_and(|most| need.volumes < most);
    let name = info.instance_type().map(InstanceType::as_str).unwrap_or_default();
    enough(vcpus(info).into(), need.cpus)
        && memory
        && attaches
        && need.offered.is_none_or(|offered| offered.contains(name))
}

fn vcpus(info: &InstanceTypeInfo) -> i32 {
    info.v_cpu_info().and_then(|cpus| cpus.default_v_cpus()).unwrap_or(0)
}

fn memory_mib(info: &InstanceTypeInfo) -> i64 {
    info.memory_info().and_then(|memory| memory.size_in_mib()).unwrap_or(0)
}

/// Smaller comes first: size, then how well it suits among those of its size, then its name.
fn order(info: &InstanceTypeInfo) -> (i64, bool, usize, String) {
    let name = info.instance_type().map(InstanceType::as_str).unwrap_or_default();
    let family = name.split('.').next().unwrap_or_default();
    let size = i64::from(vcpus(info)) * MIB_PER_VCPU + memory_mib(info);
    let on_credit = info.burstable_performance_supported() == Some(true) && vcpus(info) > BURSTABLE_UP_TO_VCPUS;
    let preference = PREFERRED_FAMILIES.iter().position(|preferred| *preferred == family);
    (size, on_credit, preference.unwrap_or(PREFERRED_FAMILIES.len()), name.to_owned())
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::builders::InstanceTypeInfoBuilder;
    use aws_sdk_ec2::types::{EbsInfo, GpuInfo, MemoryInfo, ProcessorInfo, VCpuInfo};

    use super::*;

    const GIB: u64 = 1 << 30;

    fn info(name: &str, cpus: i32, gib: i64) -> InstanceTypeInfoBuilder {
        InstanceTypeInfo::builder()
            .instance_type(InstanceType::from(name))
            .current_generation(true)
            .hypervisor(InstanceTypeHypervisor::Nitro)
            .supported_root_device_types(RootDeviceType::Ebs)
            .supported_usage_classes(UsageClassType::OnDemand)
            .supported_boot_modes(BootModeType::LegacyBios)
            .supported_boot_modes(BootModeType::Uefi)
            .burstable_performance_supported(name.starts_with('t'))
            .processor_info(ProcessorInfo::builder().supported_architectures(ArchitectureType::X8664).build())
            .v_cpu_info(VCpuInfo::builder().default_v_cpus(cpus).build())
            .memory_info(MemoryInfo::builder().size_in_mib(gib << 10).build())
    }

    fn market() -> Vec<InstanceTypeInfo> {
        let plain = [
            ("t3a.medium", 2, 4),
            ("t3.medium", 2, 4),
            ("c6i.large", 2, 4),
            ("m6i.large", 2, 8),
            ("t3.2xlarge", 8, 32),
            ("m6i.2xlarge", 8, 32),
            ("r6i.2xlarge", 8, 64),
            ("x2iedn.xlarge", 4, 128),
        ];
        plain.map(|(name, cpus, gib)| info(name, cpus, gib).build()).to_vec()
    }

    fn need(cpus: u64, ram_bytes: u64) -> Need<'static> {
        Need { cpus, ram_bytes, firmware: BootFirmware::Bios, volumes: 1, offered: None }
    }

    fn chosen(types: &[InstanceTypeInfo], need: &Need<'_>) -> Option<String> {
        smallest(types, need).map(|t| t.as_str().to_owned())
    }

    #[test]
    fn the_smallest_that_fits_is_chosen() {
        for (cpus, ram_bytes, expected) in [
            (1, GIB, "t3.medium"),
            (2, 4 * GIB, "t3.medium"),
            (2, 4 * GIB + 1, "m6i.large"),
            (4, 16 * GIB, "m6i.2xlarge"),
            (2, 64 * GIB, "r6i.2xlarge"),
            (2, 65 * GIB, "x2iedn.xlarge"),
        ] {
            assert_eq!(chosen(&market(), &need(cpus, ram_bytes)).as_deref(), Some(expected), "{cpus} {ram_bytes}");
        }
        assert_eq!(chosen(&market(), &need(9, GIB)), None);
        assert_eq!(chosen(&market(), &need(u64::MAX, u64::MAX)), None);
    }

    #[test]
    fn the_order_of_the_answer_is_of_no_account() {
        let mut types = market();
        for _ in 0..types.len() {
            types.rotate_left(1);
            assert_eq!(chosen(&types, &need(1, GIB)).as_deref(), Some("t3.medium"));
        }
    }

    #[test]
    fn what_costs_extra_or_does_not_boot_the_guest_is_passed_over() {
        let odd = [
            info("a.old", 2, 4).current_generation(false),
            info("a.xen", 2, 4).hypervisor(InstanceTypeHypervisor::Xen),
            info("a.metal", 2, 4).bare_metal(true),
            info("a.disks", 2, 4).instance_storage_supported(true),
            info("a.gpu", 2, 4).gpu_info(GpuInfo::builder().build()),
            info("a.uefi", 2, 4).set_supported_boot_modes(Some(vec![BootModeType::Uefi])),
            info("a.arm", 2, 4)
                .processor_info(ProcessorInfo::builder().supported_architectures(ArchitectureType::Arm64).build()),
            info("a.spot", 2, 4).set_supported_usage_classes(Some(vec![UsageClassType::Spot])),
        ];
        let types: Vec<_> = odd.into_iter().map(InstanceTypeInfoBuilder::build).collect();
        assert_eq!(chosen(&types, &need(1, GIB)), None);
        let uefi = Need { firmware: BootFirmware::Uefi, ..need(1, GIB) };
        assert_eq!(chosen(&types, &uefi).as_deref(), Some("a.uefi"));
    }

    #[test]
    fn the_zone_must_offer_it_and_all_volumes_must_find_a_place() {
        let offered = BTreeSet::from(["m6i.large".to_owned()]);
        let here = Need { offered: Some(&offered), ..need(1, GIB) };
        assert_eq!(chosen(&market(), &here).as_deref(), Some("m6i.large"));
        let few = EbsInfo::builder().maximum_ebs_attachments(28).build();
        let types = [info("t3.medium", 2, 4).ebs_info(few).build(), info("m7i.large", 2, 8).build()];
        let with = |volumes| chosen(&types, &Need { volumes, ..need(1, GIB) });
        assert_eq!((with(27).as_deref(), with(28).as_deref()), (Some("t3.medium"), Some("m7i.large")));
    }
}
