use std::fs;
use std::path::Path;

use super::*;

fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, System) {
    let root = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let system = System::under(root.path());
    (root, system)
}

const ROUTES: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
eth1\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth1\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0";

const TRIE: &str = "Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 10.0.2.0
        /24 link UNICAST
     |-- 10.0.2.15
        /32 host LOCAL
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 192.168.1.7
        /32 host LOCAL
Local:
     |-- 10.0.2.15
        /32 host LOCAL";

#[test]
fn interfaces_have_their_addresses_and_one_is_primary() {
    let (_root, system) = machine(&[
        ("sys/class/net/lo/address", "00:00:00:00:00:00"),
        ("sys/class/net/eth0/address", "52:54:00:12:34:56\n"),
        ("sys/class/net/eth0/device/vendor", ""),
        ("sys/class/net/eth1/address", "52:54:00:12:34:57\n"),
        ("sys/class/net/eth1/device/vendor", ""),
        ("sys/class/net/docker0/address", "02:42:00:00:00:00"),
        ("proc/net/route", ROUTES),
        ("proc/net/fib_trie", TRIE),
        (
            "proc/net/if_inet6",
            "fd000000000000000000000000000007 03 40 00 80 eth1\nfe80000000000000505400fffe123456 03 40 20 80 eth1",
        ),
    ]);
    let found = network::interfaces(&system);
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].mac_address.as_str(), found[0].is_primary), ("52:54:00:12:34:56", false));
    assert_eq!(found[0].ips, ["10.0.2.15"]);
    assert_eq!((found[1].ips.join(" ").as_str(), found[1].is_primary), ("192.168.1.7 fd00::7", true));
}

#[test]
fn the_host_and_its_system_are_named() {
    let (_root, system) = machine(&[
        ("proc/sys/kernel/hostname", "web1\n"),
        ("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n"),
        ("etc/hosts", "127.0.0.1 localhost\n10.0.0.5 web1.example.org web1 # ours\n"),
        ("etc/os-release", "NAME=\"Debian GNU/Linux\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
        ("sys/class/dmi/id/sys_vendor", "VMware, Inc.\n"),
        ("sys/class/dmi/id/product_uuid", "564d0001-0000-0000-0000-000000000000\n"),
        ("sys/firmware/efi/fw_platform_size", "64"),
        ("proc/meminfo", "MemTotal:        2048000 kB\nMemFree: 1 kB\n"),
    ]);
    let facts = collect(&system, &[]);
    let hints = facts.identification_hints;
    assert_eq!((hints.hostname.as_str(), hints.fqdn.as_deref()), ("web1", Some("web1.example.org")));
    assert_eq!(hints.vm_ware_uuid.as_deref(), Some("564d0001-0000-0000-0000-000000000000"));
    assert_eq!(facts.os.full_string, "Debian GNU/Linux 12 (bookworm), kernel 6.1.0-18-amd64");
    assert_eq!(facts.ram_bytes, 2_048_000 * 1024);
    assert_eq!(firmware(&system), BootFirmware::Uefi);
}

#[test]
fn processors_are_counted_by_socket() {
    let one = |id: u32, socket: u32| {
        format!("processor\t: {id}\nmodel name\t: Xeon\nphysical id\t: {socket}\ncpu cores\t: 2\n\n")
    };
    let two_sockets: String = [one(0, 0), one(1, 0), one(2, 0), one(3, 0), one(4, 1)].concat();
    let cores: Vec<_> = cpus(&two_sockets).iter().map(|c| c.cores).collect();
    assert_eq!(cores, [2, 2]);
    let plain = cpus("processor\t: 0\nmodel name\t: QEMU\n\nprocessor\t: 1\nmodel name\t: QEMU\n\n");
    assert_eq!(plain, [Cpu { cores: 2, model_name: "QEMU".to_owned() }]);
}

#[test]
fn an_empty_machine_has_empty_facts() {
    let facts = collect(&System::under(Path::new("/nonexistent")), &[]);
    assert_eq!(facts.os.full_string, "Linux");
    assert!(facts.network_interfaces.is_empty() && facts.cpus.is_empty() && facts.ram_bytes == 0);
}

#[test]
fn this_machine_has_a_name_and_memory() {
    let facts = collect(&System::default(), &[]);
    assert!(!facts.identification_hints.hostname.is_empty());
    assert!(facts.ram_bytes > 0 && !facts.cpus.is_empty());
}
