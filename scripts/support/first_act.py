"""Act one: a guest loses everything on its disk, and a checkpoint gives it back."""

import hashlib
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

from .stage import KEEP_WRITING, MAKE_FILES, VERIFY, WRITTEN, Stage, mib, must

DESTROY = """
dd if=/dev/urandom of=/dev/vda bs=1M count=192 conv=fsync || exit
dd if=/dev/zero of=/dev/vda bs=1M seek=192 count=832 conv=fsync || exit
"""

# As long as the writer keeps the old mount in use, a new one would only show the kernel's memory of it.
LET_GO = """
kill "$(cat /tmp/writer.pid)" 2>/dev/null
i=0
while mount | grep -q /mnt; do
    umount /mnt 2>/dev/null && continue
    i=$((i + 1))
    [ $i -lt 100 ] || exit 1
    sleep 0.1
done
"""


def sums_hold(sums, folder):
    """How many files of a list of checksums there are; each must be what the list says."""
    count = 0
    for line in sums.read_text().splitlines():
        expected, name = line.split(maxsplit=1)
        must(hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected, f"{folder / name} is damaged")
        count += 1
    return count


class FirstAct(Stage):
    """Destruction, restore, fork, trim."""

    def first_life(self):
        """Files, a checkpoint in the middle of writing, and destruction; returns what must survive."""
        told = "guest booted; its disk is the volume, over NBD on a Unix socket"
        with self.guest("first", "disk", "booting the guest", told) as guest:
            with self.steps.step("mkfs.ext4 and writing files") as said:
                size = guest.run(MAKE_FILES)
                said(f"guest: mkfs.ext4, wrote 120 files ({size} MiB) and their checksums")
            with self.steps.step("keeping the guest writing") as said:
                guest.run(KEEP_WRITING)
                deadline = time.monotonic() + 60
                while int(guest.run(WRITTEN)) < 10:
                    must(time.monotonic() < deadline, "the guest does not keep writing")
                    time.sleep(0.2)
                said("guest keeps writing: file after file, each synced, then its checksum")
            with self.steps.step("taking a checkpoint") as said:
                before = int(guest.run(WRITTEN))
                begin = time.monotonic()
                made = self.server.cairn("checkpoint", "create", "disk", "--comment", "while the guest writes")
                took = (time.monotonic() - begin) * 1000
                must(made["id"] == "v1", f"the first checkpoint is {made['id']}")
                said(f"cairn checkpoint create disk: v1 in {took:.0f} ms, {before} live files synced before it")
            with self.steps.step("waiting for the guest to write on") as said:
                deadline = time.monotonic() + 60
                while (after := int(guest.run(WRITTEN))) < before + 10:
                    must(time.monotonic() < deadline, "the guest stopped writing at the checkpoint")
                    time.sleep(0.2)
                said(f"guest went on writing meanwhile: {after} live files")
            with self.steps.step("destroying the file system") as said:
                guest.run(DESTROY)
                guest.run(LET_GO)
                status, _ = guest.run("mount /dev/vda /mnt", check=False)
                must(status != 0, guest.evidence("the disk still mounts after its destruction"))
                status, _ = guest.run("e2fsck -fn /dev/vda", check=False)
                must(status & 8, guest.evidence(f"e2fsck finds a file system after its destruction ({status})"))
                said("guest overwrote its whole disk: 192 MiB of random bytes, then zeros;")
                said("nothing mounts, e2fsck finds no file system")
            guest.power_off()
        return before, after

    def look_back(self, before, after):
        """What the checkpoint held, while nothing of it is on the disk."""
        with self.steps.step("looking into the checkpoint") as said:
            folder = self.server.folder / "before"
            copied = self.server.cairn("checkpoint", "cp", "disk", "v1", "/", str(folder))
            must(not copied["skipped"], f"not copied: {copied['skipped']}")
            checked = {name: sums_hold(folder / f"{name}.sums", folder / name) for name in ["files", "live"]}
            must(checked["files"] == 120, f"{checked['files']} files in place of 120")
            must(before <= checked["live"] <= after, f"{checked['live']} live files, but {before} to {after} were expected")
            shutil.rmtree(folder)
            said("cairn checkpoint cp disk v1 /: without a guest or a mount all files of the checkpoint,")
            said(f"120 and {checked['live']} live ones, whose checksums hold")

    def second_life(self, before, after):
        """Restore, verify, fork, two guests at once, trim."""
        self.look_back(before, after)
        with self.steps.step("restoring the checkpoint") as said:
            answer = self.server.cairn("restore", "disk", "v1")
            said(f"cairn restore disk v1 (what it replaced is kept as {answer['undo']})")
        told = "guest booted on the restored volume"
        with self.guest("first", "disk", "booting the guest again", told) as first:
            with self.steps.step("verifying every checksum") as said:
                live = int(first.run("mount -o discard /dev/vda /mnt\n" + VERIFY))
                must(before <= live <= after, f"{live} live files, but {before} to {after} were expected")
                said(f"all checksums of the checkpoint hold: 120 files and {live} live files")
            with self.steps.step("checking the file system") as said:
                first.run("umount /mnt && e2fsck -fn /dev/vda && mount -o discard /dev/vda /mnt")
                said("e2fsck -f: clean")
            with self.steps.step("forking the volume") as said:
                first.run("echo first >/mnt/owner && sync")
                begin = time.monotonic()
                self.server.cairn("fork", "disk", "twin")
                said(f"cairn fork disk twin: {(time.monotonic() - begin) * 1000:.0f} ms, while the first guest runs")
            self.twins(first, live)
            self.trim(first)
            self.power_off(first)

    def twins(self, first, live):
        """A second guest on the fork, beside the first."""
        told = "second guest booted on the fork, the first still runs"
        with self.guest("second", "twin", "booting a second guest", told) as second:
            with self.steps.step("writing and verifying in both guests") as said:
                must(second.run("mount -o discard /dev/vda /mnt && cat /mnt/owner") == "first", "the fork is not a copy")
                with ThreadPoolExecutor(2) as both:
                    jobs = [
                        both.submit(guest.run, f"dd if=/dev/urandom of=/mnt/{name} bs=1M count=16 conv=fsync\n"
                                    f"echo {name} >/mnt/owner; sync; echo 3 >/proc/sys/vm/drop_caches\n" + VERIFY)
                        for guest, name in [(first, "first"), (second, "second")]
                    ]
                    for job in jobs:
                        got = int(job.result().split("\n")[-1])
                        must(got == live, f"{got} live files verified in place of {live}")
                for guest, own, other in [(first, "first", "second"), (second, "second", "first")]:
                    guest.run(f'[ "$(cat /mnt/owner)" = {own} ] && [ -e /mnt/{own} ] && [ ! -e /mnt/{other} ]')
                said("both guests wrote and verified every checksum at the same time;")
                said("neither sees what the other wrote")
            self.power_off(second)

    def trim(self, first):
        """fstrim gives back what deleted files held."""
        with self.steps.step("trimming") as said:
            first.run("umount /mnt && mount /dev/vda /mnt")
            full = int(first.run("du -sk /mnt/files | cut -f1")) * 1024
            first.run("rm -r /mnt/files && sync")
            held = self.mapped("disk")
            trimmed = first.run("fstrim -v /mnt && sync")
            left = self.mapped("disk")
            must(held - left >= full * 0.9, f"{mib(full)} deleted and trimmed ({trimmed}), but only {mib(held - left)} freed")
            said(f"guest deleted {mib(full)} and ran fstrim: mapped_bytes fell from {mib(held)} to {mib(left)}")
