"""What both acts of the demo stand on: the shell scripts that guests run, and guests whose boot and end are steps."""

from contextlib import contextmanager

from .guest import Guest, nbd_disk
from .processes import Failed

DISK = "1G"
MIB = 1 << 20

MAKE_FILES = """
set -e
mkfs.ext4 -q /dev/vda
mount -o discard /dev/vda /mnt
mkdir /mnt/files /mnt/live
i=0
while [ $i -lt 120 ]; do
    i=$((i + 1))
    dd if=/dev/urandom of=/mnt/files/$i bs=4k count=$((i * 37 % 200 + 1)) 2>/dev/null
done
cd /mnt/files && sha256sum * >/mnt/files.sums
cd / && sync
du -sm /mnt/files | cut -f1
"""

# Each file is on the disk before its checksum is, and that before the next file is begun: so the
# files that the list names must be whole in every state that the disk was ever in.
KEEP_WRITING = """
cat >/tmp/writer <<'END'
i=0
cd /mnt/live
while :; do
    i=$((i + 1))
    dd if=/dev/urandom of=$i bs=16k count=$((i % 8 + 1)) conv=fsync 2>/dev/null || exit
    sum=$(sha256sum $i) || exit
    echo "$sum" >>/mnt/live.sums && sync -d /mnt/live.sums || exit
    echo $i >/tmp/written
done
END
sh /tmp/writer >/dev/null 2>&1 3>&- &
echo $! >/tmp/writer.pid
"""

# Only what was synced: the last line of the sums may not be yet.
WRITTEN = "cat /tmp/written 2>/dev/null || echo 0"

VERIFY = """
set -e
cd /mnt/files && sha256sum -c /mnt/files.sums >/tmp/verify || { grep -v OK /tmp/verify; exit 1; }
[ "$(grep -c OK /tmp/verify)" = 120 ]
cd /mnt/live && sha256sum -c /mnt/live.sums >/tmp/verify || { grep -v OK /tmp/verify; exit 1; }
grep -c OK /tmp/verify
"""


def must(held, what):
    """Fails unless `held`."""
    if not held:
        raise Failed(what)


def mib(size):
    """Bytes for people."""
    return f"{size / MIB:.1f} MiB"


class Stage:
    """A daemon, and where guests and their consoles are kept."""

    def __init__(self, server, guest_image, accel, steps):
        self.server, self.image, self.accel, self.steps = server, guest_image, accel, steps

    @contextmanager
    def guest(self, name, volume, doing, done):
        """A guest with `volume` as its only disk; its boot is a step."""
        guest = Guest(name, self.server.folder, self.image, self.accel, nbd_disk(self.server.socket, volume))
        try:
            with self.steps.step(doing) as said:
                guest.boot()
                said(done)
            yield guest
        finally:
            guest.end()

    def power_off(self, guest):
        """The guest's own end, as a step."""
        with self.steps.step(f"powering the {guest.name} guest off") as said:
            guest.run("umount /mnt && e2fsck -fn /dev/vda")
            guest.power_off()
            said(f"{guest.name} guest: e2fsck clean, powered off")

    def mapped(self, volume):
        """The bytes that `cairn volume info` reports."""
        return self.server.cairn("volume", "info", volume)["mapped_bytes"]
