"""Act two: the host is lost with its pool, and another one goes on from the object store.

The daemon of act one begins to keep its volumes in a bucket; a guest writes on, and then the daemon is
killed and its folder removed. What a new daemon with an empty pool takes from the bucket must hold every
file of the last remote checkpoint, and of the volume itself every file whose checksum is there.
"""

import shutil
import time
import urllib.request
from contextlib import contextmanager

from .daemon import Daemon
from .processes import ROOT, child, end
from .stage import KEEP_WRITING, MAKE_FILES, VERIFY, WRITTEN, Stage, must

BUCKET = "demo"
LAG_S = 2
# The S3 server takes any; the daemon wants some.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "demo-secret",
    "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
}
# The first mount plays the journal back, as after any power cut.
CHECK = """
set -e
mount -o discard /dev/vda /mnt
umount /mnt
e2fsck -fn /dev/vda >/tmp/fsck 2>&1 || { cat /tmp/fsck; exit 1; }
mount -o discard /dev/vda /mnt
"""


@contextmanager
def s3_server():
    """An S3 server on loopback with an empty bucket; its URL."""
    with child(ROOT / "scripts" / "moto") as process:
        url = process.stdout.readline().strip()
        must(url.startswith("http://"), "scripts/moto did not start")
        with urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT"), timeout=20):
            yield url


class SecondAct(Stage):
    """The loss of a host."""

    def __init__(self, server, guest_image, accel, steps, other):
        super().__init__(server, guest_image, accel, steps)
        self.other = other

    def life(self):
        """A guest writes, with a remote checkpoint in the middle, until its host is lost; returns what must survive."""
        told = "guest booted on the volume that it had at the end of act one"
        with self.guest("first", "disk", "booting the guest", told) as guest:
            with self.steps.step("writing files") as said:
                size = guest.run(MAKE_FILES)
                guest.run(KEEP_WRITING)
                said(f"guest: mkfs.ext4, 120 files ({size} MiB) and their checksums; keeps writing")
            with self.steps.step("taking a remote checkpoint") as said:
                self.written(guest, 10)
                before = int(guest.run(WRITTEN))
                made = self.server.cairn("checkpoint", "create", "disk", "--wait", "remote")
                after = int(guest.run(WRITTEN))
                must(made["durability"] == "remote", f"the checkpoint is {made}")
                said(f"cairn checkpoint create disk --wait remote: {made['id']}, in the bucket;")
                said(f"{before} live files synced before it")
            with self.steps.step("waiting for the guest to write on") as said:
                written = self.written(guest, after + 60)
                time.sleep(LAG_S)
                written = self.written(guest, written + 5)
                said(f"guest went on writing meanwhile: {written} live files")
            with self.steps.step("losing the host") as said:
                self.server.kill()
                shutil.rmtree(self.server.pool)
                must(not self.server.pool.exists(), "the pool is still there")
                said("kill -9 of the daemon, in the middle of writing; its pool's folder deleted")
        return made["id"], before, after, written

    def written(self, guest, count):
        """Waits for so many live files; how many there are."""
        deadline = time.monotonic() + 60
        while (now := int(guest.run(WRITTEN))) < count:
            must(time.monotonic() < deadline, "the guest does not keep writing")
            time.sleep(0.2)
        return now

    def afterlife(self, checkpoint, before, after, written):
        """Another host: attach, boot, verify."""
        with self.steps.step("starting a daemon on another host") as said:
            self.other.start()
            must(self.other.cairn("volume", "list") == [], "the new pool is not empty")
            said("cairn serve on a new, empty pool with the same bucket")
        self.server = self.other
        with self.steps.step("attaching the volume") as said:
            self.server.cairn("volume", "attach", "disk", "--takeover")
            local = self.server.cairn("volume", "info", "disk")["pool_local_bytes"]
            said(f"cairn volume attach disk --takeover: {local // 1024} KiB are here, the rest comes when it is read")
        with self.guest("first", "disk", "booting the guest", "guest booted from it, over NBD") as guest:
            with self.steps.step("verifying the volume") as said:
                live = int(guest.run(CHECK + VERIFY))
                must(live >= before, f"{live} live files, but the checkpoint had {before}")
                said(f"e2fsck -f: clean; all checksums hold: 120 files and {live} live files, of {written} that")
                said(f"the guest had written: the bucket was at most {LAG_S} s behind")
        with self.steps.step("forking the checkpoint") as said:
            self.server.cairn("fork", f"disk@{checkpoint}", "last")
            said(f"cairn fork disk@{checkpoint} last")
        with self.guest("second", "last", "booting a guest on the fork", "guest booted on the fork") as guest:
            with self.steps.step("verifying the checkpoint") as said:
                live = int(guest.run(CHECK + VERIFY))
                must(before <= live <= after, f"{live} live files, but {before} to {after} were expected")
                said(f"e2fsck -f: clean; every checksum of {checkpoint} holds: 120 files and {live} live files")
            self.power_off(guest)


def second_act(server, guest_image, accel, steps):
    """Plays it; `server` is the stopped daemon of act one."""
    with s3_server() as url:
        server.more = [f"--object-store=s3://{BUCKET}/disks", f"--s3-endpoint={url}", f"--lag={LAG_S}"]
        server.environment = CREDENTIALS
        other = Daemon(server.folder, binary=server.binary, name="other")
        other.more, other.environment = server.more, server.environment
        try:
            with steps.step("starting an S3 server and the daemon") as said:
                server.start()
                said(f"cairn serve on the pool of act one, now with --object-store s3://{BUCKET}/disks")
            with steps.step("uploading") as said:
                server.cairn("volume", "sync", "disk")
                sent = server.cairn("volume", "info", "disk")["object_bytes"]
                said(f"cairn volume sync disk: all of it is in the bucket, {sent / (1 << 20):.1f} MiB")
            act = SecondAct(server, guest_image, accel, steps, other)
            act.afterlife(*act.life())
            with steps.step("stopping the daemon and checking the pool") as said:
                other.stop()
                said("daemon stopped cleanly")
        finally:
            for daemon in [server, other]:
                if daemon.process is not None:
                    end(daemon.process)
