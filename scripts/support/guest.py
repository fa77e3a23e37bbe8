"""A Linux guest under QEMU that carries out shell scripts.

Promises: KVM is used only where a stock kernel was seen to reach user space on it, else TCG; the
disks are declared raw, so that nothing in their content is ever taken for a format; what the guest
cannot do raises `Failed` with the end of its console.
"""

import base64
import os
import socket
import subprocess
import time
from pathlib import Path

from .processes import ROOT, Failed, end, run, scratch, tail

KVM_PROBE_S = 8
BOOT_S = 90
JOB_S = 180
MEMORY_MIB = 256


def image():
    """The folder with the guest's kernel and initramfs; builds it if needed."""
    _, out, _ = run(ROOT / "scripts" / "guest-image", timeout=300)
    return Path(out.strip())


def acceleration(guest_image):
    """`kvm` if a guest really runs on it, else `tcg`; probed once for each boot of this machine."""
    wanted = os.environ.get("CAIRN_ACCEL")
    if wanted:
        return wanted
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = guest_image / f"accel-{boot}"
    if known.exists():
        return known.read_text().strip()
    with scratch() as folder:
        try:
            with Guest("probe", folder, guest_image, "kvm", boot_s=KVM_PROBE_S):
                found = "kvm"
        except Failed:
            found = "tcg"
    known.write_text(found)
    return found


def nbd_disk(socket_path, export):
    """QEMU's arguments for a disk over NBD."""
    return [
        "-drive",
        f"if=none,id=disk,format=raw,discard=unmap,cache=none,file.driver=nbd,"
        f"file.server.type=unix,file.server.path={socket_path},file.export={export}",
        "-device", "virtio-blk-pci,drive=disk,serial=cairn",
    ]


def network():
    """QEMU's arguments for a network on which 10.0.2.2 is this machine's loopback."""
    return ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]


class Guest:
    """A guest that runs while in its `with` block."""

    def __init__(self, name, folder, guest_image, accel, extra=(), boot_s=BOOT_S):
        self.name = name
        self.console = folder / f"{name}.console"
        self.agent = folder / f"{name}.agent"
        self.image, self.accel, self.extra, self.boot_s = guest_image, accel, list(extra), boot_s
        self.jobs = 0
        self.buffer = b""
        self.process = self.link = None

    def command(self):
        """QEMU's command line."""
        accel = "tcg,thread=multi" if self.accel == "tcg" else self.accel
        return [
            "qemu-system-x86_64", "-name", self.name, "-nodefaults", "-no-user-config", "-display", "none",
            "-machine", "q35", "-accel", accel, "-cpu", "max", "-m", str(MEMORY_MIB), "-no-reboot",
            "-kernel", str(self.image / "vmlinuz"), "-initrd", str(self.image / "initrd"),
            "-append", "console=ttyS0 quiet panic=-1 mitigations=off",
            "-serial", f"file:{self.console}",
            "-chardev", f"socket,id=agent,path={self.agent}", "-serial", "chardev:agent",
            *self.extra,
        ]

    def boot(self):
        """Starts QEMU and waits until the guest takes jobs."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.agent))
        listener.listen(1)
        listener.settimeout(self.boot_s)
        log = open(f"{self.console}.qemu", "wb")
        try:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
            # QEMU connects while it starts; if it cannot start, it ends instead.
            listener.settimeout(0.2)
            deadline = time.monotonic() + self.boot_s
            while self.link is None:
                try:
                    self.link, _ = listener.accept()
                except socket.timeout:
                    if self.process.poll() is not None or time.monotonic() > deadline:
                        raise Failed(self.evidence("QEMU did not start")) from None
            self.collect(0, self.boot_s)
        except FileNotFoundError as error:
            raise Failed("qemu-system-x86_64 is not installed: run scripts/setup demo") from error
        except BaseException:
            self.end()
            raise
        finally:
            log.close()
            listener.close()
            self.agent.unlink()
        return self

    def end(self):
        """Ends QEMU, if it still runs."""
        if self.process is not None:
            end(self.process)
        if self.link is not None:
            self.link.close()

    __enter__ = boot

    def __exit__(self, *_):
        self.end()

    def evidence(self, what):
        """An error's text with the end of the console."""
        qemu = tail(f"{self.console}.qemu").strip()
        return f"guest {self.name}: {what}\n--- end of its console\n{tail(self.console)}\n{qemu}".rstrip()

    def run(self, script, timeout=JOB_S, check=True):
        """Runs a shell script in the guest; returns its output, or (status, output) unless `check`."""
        self.jobs += 1
        code = base64.b64encode(script.encode()).decode()
        self.link.settimeout(timeout)
        try:
            self.link.sendall(f"{self.jobs} {code}\n".encode())
        except OSError as error:
            raise Failed(self.evidence(f"does not listen ({error})")) from error
        status, output = self.collect(self.jobs, timeout)
        if not check:
            return status, output
        if status != 0:
            raise Failed(self.evidence(f"exit status {status} of\n{script.strip()}\n--- output\n{output}"))
        return output

    def collect(self, number, timeout):
        """Waits for the end of a job; returns its status and output."""
        mark = f"@@ {number} ".encode()
        deadline = time.monotonic() + timeout
        while True:
            at = self.buffer.find(mark)
            stop = self.buffer.find(b"\n", at) if at >= 0 else -1
            if stop >= 0:
                output = self.buffer[:at].decode(errors="replace").strip()
                status = int(self.buffer[at + len(mark):stop])
                self.buffer = self.buffer[stop + 1:]
                return status, output
            left = deadline - time.monotonic()
            if left <= 0:
                raise Failed(self.evidence(f"no answer within {timeout} s"))
            self.link.settimeout(left)
            try:
                got = self.link.recv(1 << 16)
            except socket.timeout:
                continue
            if not got:
                raise Failed(self.evidence("ended unexpectedly"))
            self.buffer += got

    def power_off(self):
        """Lets the guest power itself off, and waits for QEMU's end."""
        self.link.sendall(f"{self.jobs + 1} {base64.b64encode(b'sync; poweroff -f').decode()}\n".encode())
        try:
            status = self.process.wait(30)
        except subprocess.TimeoutExpired:
            raise Failed(self.evidence("did not power off")) from None
        if status != 0:
            raise Failed(self.evidence(f"QEMU ended with status {status}"))

