use super::*;

fn arguments(spec: &MachineSpec, folder: &Path) -> String {
    let command = spec.command(folder, &[(80, 18080)]).unwrap();
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    words.join(" ")
}

#[test]
fn a_source_is_vmware_like_and_reached_from_loopback_alone() {
    let folder = tempfile::tempdir().unwrap();
    let line = arguments(&MachineSpec::source(Path::new("/d.img")), folder.path());
    assert!(line.contains("ide-hd,drive=disk0,bus=ide.0"), "{line}");
    assert!(line.contains("e1000,netdev=net0,mac=52:54:00:77:00:15"), "{line}");
    assert!(line.contains("hostfwd=tcp:127.0.0.1:18080-:80"), "{line}");
    assert!(!line.contains("pflash"), "{line}");
}

#[test]
fn disks_keep_their_order_on_every_controller() {
    let folder = tempfile::tempdir().unwrap();
    for (controller, second) in [
        (Controller::Ahci, "ide-hd,drive=disk1,bus=ide.1"),
        (Controller::Pvscsi, "scsi-hd,drive=disk1,bus=scsi0.0"),
        (Controller::Nvme, "nvme,drive=disk1,serial=vol1"),
    ] {
        let spec = MachineSpec::source(Path::new("/a.img")).disk(Path::new("/b.img")).controller(controller);
        let line = arguments(&spec, folder.path());
        assert!(line.find("/a.img").unwrap() < line.find("/b.img").unwrap());
        assert!(line.contains(second), "{line}");
    }
}

#[test]
fn the_screen_is_read_cell_by_cell() {
    let mut memory = vec![0; 480];
    for (column, byte) in b"Gave up".iter().enumerate() {
        memory[160 + column * 2] = *byte;
        memory[160 + column * 2 + 1] = 7;
    }
    assert_eq!(screen_text(&memory), "Gave up");
}
