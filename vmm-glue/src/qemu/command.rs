//! QEMU's command line for one guest.
//!
//! Invariants
//!   * nothing is there that is not named here: no default devices, no configuration of the user's or the system's;
//!   * sockets and files of the machine are relative to its folder, in which QEMU starts: no path is too long;
//!   * the VMM may start no process and gain no privilege (`-sandbox`).

use super::qmp::SOCKET;
use crate::accel::Accel;
use crate::Disk;
use std::path::Path;

/// Ports to the agent: the first for short requests, each of the others for one command.
pub(crate) const PORTS: usize = 16;

/// What a guest is started with.
pub(crate) struct Settings<'a> {
    pub(crate) name: &'a str,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
    pub(crate) accel: Accel,
    pub(crate) kernel: &'a Path,
    pub(crate) initrd: &'a Path,
    pub(crate) disk: Option<&'a Disk>,
    pub(crate) incoming: Incoming,
}

/// Whether a guest boots, or waits for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    Boot,
    Memory,
}

/// The program and its arguments.
pub(crate) fn command(settings: &Settings<'_>) -> Vec<String> {
    let (accel, cpu) = match settings.accel {
        Accel::Kvm => ("kvm", "host"),
        Accel::Tcg => ("tcg,thread=multi", "max"),
    };
    let mut out: Vec<String> = ["qemu-system-x86_64", "-name"].map(str::to_owned).to_vec();
    // A comma would begin an option; names have none, and a doubled one means itself.
    out.push(format!("{},process=cairn-{}", settings.name, settings.name));
    let mut add = |words: &[&str]| out.extend(words.iter().map(|word| (*word).to_owned()));
    let machine = format!("q35{}", settings.disk.map_or_else(String::new, Disk::machine_option));
    add(&["-nodefaults", "-no-user-config", "-display", "none", "-machine", &machine, "-accel", accel, "-cpu", cpu]);
    add(&["-smp", &settings.cpus.to_string(), "-m", &format!("{}M", settings.memory_mib)]);
    add(&["-kernel", &settings.kernel.to_string_lossy(), "-initrd", &settings.initrd.to_string_lossy()]);
    add(&["-append", "console=ttyS0 quiet panic=-1 root=/dev/vda rw", "-no-reboot"]);
    add(&["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    // Its standard output is the keeper's pipe.
    add(&["-chardev", "file,id=console,path=/dev/stdout", "-serial", "chardev:console"]);
    add(&["-qmp", &format!("unix:{SOCKET},server=on,wait=off")]);
    add(&["-object", "rng-builtin,id=entropy", "-device", "virtio-rng-pci,rng=entropy"]);
    add(&["-device", &format!("virtio-serial-pci,max_ports={}", PORTS + 1)]);
    for port in 0..PORTS {
        add(&["-chardev", &format!("socket,id=agent{port},path={},server=on,wait=off", crate::agent::socket(port))]);
        // Port 0 of the bus is for consoles alone.
        add(&["-device", &format!("virtserialport,nr={},chardev=agent{port},name=cairn.{port}", port + 1)]);
    }
    if settings.incoming == Incoming::Memory {
        add(&["-incoming", "defer"]);
    }
    let disk = settings.disk.map(|disk| disk.qemu_arguments(settings.cpus, settings.memory_mib));
    out.extend(disk.unwrap_or_default());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(incoming: Incoming) -> Vec<String> {
        let disk = Disk::Nbd { socket: "/pool/nbd.sock".into(), export: "web".to_owned() };
        command(&Settings {
            name: "web",
            cpus: 2,
            memory_mib: 512,
            accel: Accel::Tcg,
            kernel: Path::new("vmlinuz"),
            initrd: Path::new("initrd"),
            disk: Some(&disk),
            incoming,
        })
    }

    #[test]
    fn no_disk_is_attached_in_a_way_that_guesses_its_format() {
        let line = line(Incoming::Boot);
        for guessing in ["-drive", "-hda", "-cdrom", "-fda", "-sd", "-pflash", "-snapshot"] {
            assert!(!line.iter().any(|word| word == guessing), "{guessing}");
        }
        let disks: Vec<&String> =
            line.iter().zip(line.iter().skip(1)).filter(|(a, _)| *a == "-blockdev").map(|p| p.1).collect();
        assert_eq!(disks.len(), 1);
        assert!(disks[0].contains("\"driver\":\"raw\""), "{disks:?}");
    }

    #[test]
    fn nothing_comes_by_default_and_no_process_can_be_started() {
        let line = line(Incoming::Boot);
        assert!(["-nodefaults", "-no-user-config"].iter().all(|word| line.iter().any(|have| have == word)));
        assert!(line.iter().any(|word| word.contains("spawn=deny") && word.contains("elevateprivileges=deny")));
        assert!(!line.iter().any(|word| word == "-incoming"));
        assert!(super::tests::line(Incoming::Memory).iter().any(|word| word == "-incoming"));
    }
}
