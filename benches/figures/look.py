"""Looking back: files of checkpoints through a mount, beside another program that shows the same image's files.

The peer is fuse2fs (e2fsprogs), which serves the raw image's files over FUSE, too. It stands in for a loop mount: images are
never shown to this machine's kernel. Both read from the page cache; "first" is a fresh mount, of which the kernel knows
nothing yet, "again" the same mount once more.
"""

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from support.daemon import daemon
from support.processes import Failed, end, run, with_sbin

MIB = 1 << 20
GIB = 1 << 30
NOISE = 32 * MIB
START_S = 20
# Folders that images are made of; thousands of files take minutes on some disks.
MEMORY = "/dev/shm"


def root_like_debians(folder, files, total):
    """Files in the sizes and the depth of an installed system, `total` bytes in all."""
    source = random.Random(4)
    noise = source.randbytes(NOISE)
    sizes = [min(int(source.lognormvariate(8, 2.2)), 24 * MIB) for _ in range(files)]
    share = total / sum(sizes)
    for i, size in enumerate(sizes):
        place = folder / ("usr", "var", "opt")[i % 3] / f"share{i % 7}" / f"package-{i // 16}"
        place.mkdir(parents=True, exist_ok=True)
        at = source.randrange(NOISE)
        with open(place / f"file-{i}", "wb") as file:
            left = int(size * share)
            while left > 0:
                left -= file.write(noise[at:at + left])
                at = 0
        if i % 12 == 0:
            (place / f"link-{i}").symlink_to(f"file-{i}")


def many_files(folder, files):
    """Small files, 500 to a folder."""
    for i in range(files):
        place = folder / f"folder-{i // 500}"
        if i % 500 == 0:
            place.mkdir()
        (place / f"a-file-with-a-name-{i}").write_bytes(b"x" * (i % 100))


def one_file(folder, size):
    source = random.Random(9)
    with open(folder / "large", "wb") as file:
        for _ in range(size // MIB):
            file.write(source.randbytes(MIB))


def image_of(server, name, size, fill):
    """An image of what `fill` puts into a folder, and a volume of it with a checkpoint."""
    image = server.folder / f"{name}.img"
    with tempfile.TemporaryDirectory(prefix="cairn-", dir=MEMORY if os.path.isdir(MEMORY) else None) as folder:
        fill(Path(folder))
        run("mke2fs", "-q", "-F", "-t", "ext4", "-N", "200000", "-d", folder, image, size, env=with_sbin(), timeout=900)
    server.cairn("volume", "import", image, name)
    server.cairn("checkpoint", "create", name)
    # Both are read from the page cache.
    run("sh", "-c", 'cat "$1" >/dev/null', "sh", image)
    return image


@contextmanager
def ours(server, volume):
    """The checkpoint's folder, the keeper's process and how long the mount and a first `ls` took, ms."""
    at = server.folder / f"{volume}.ours"
    at.mkdir(exist_ok=True)
    begin = time.perf_counter()
    keeper = server.cairn("mount", volume, at)["process"]
    try:
        run("ls", at / "v1")
        yield at / "v1", keeper, (time.perf_counter() - begin) * 1e3
    finally:
        server.cairn("umount", "--lazy", at)


@contextmanager
def peers(server, volume):
    """The same files through fuse2fs."""
    at = server.folder / f"{volume}.peer"
    at.mkdir(exist_ok=True)
    process = subprocess.Popen(["fuse2fs", "-f", "-o", "ro", server.folder / f"{volume}.img", at],
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while not os.path.ismount(at):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failed("fuse2fs does not come up")
            time.sleep(0.01)
        yield at
    finally:
        run("fusermount3", "-u", "-z", at, check=False)
        end(process)


def timed(script, *words):
    """Seconds that a shell script took; and what it printed."""
    begin = time.perf_counter()
    _, out, _ = run("sh", "-c", script, "sh", *words, timeout=900)
    return time.perf_counter() - begin, out.strip()


def worker_bytes(keeper):
    """The most that the process which looks at images ever had in memory."""
    worker = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()[0]
    for line in Path(f"/proc/{worker}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise Failed("the worker does not tell its memory")


def beside(server, volume, script, rounds):
    """Seconds of the same work through both mounts, freshly mounted in each round, then once more; in turns."""
    found = {key: [] for key in ("ours_first", "ours_again", "peer_first", "peer_again")}
    memory, said = 0, {}
    for _ in range(rounds):
        with ours(server, volume) as (folder, keeper, _):
            for key in ("ours_first", "ours_again"):
                seconds, said["ours"] = timed(script, folder)
                found[key].append(seconds)
            memory = max(memory, worker_bytes(keeper))
        with peers(server, volume) as folder:
            for key in ("peer_first", "peer_again"):
                seconds, said["peer"] = timed(script, folder)
                found[key].append(seconds)
    return found, memory, said


def tar(server, rounds, quick):
    files, total = (2_000, 100 * MIB) if quick else (24_000, GIB)
    image_of(server, "root", "2G", lambda folder: root_like_debians(folder, files, total))
    found, memory, said = beside(server, "root", 'cd "$1" && tar cf - --exclude=lost+found . 2>/dev/null | wc -c', rounds)
    if said["ours"] != said["peer"]:
        raise Failed(f"other archives: {said}")
    return {**found, "files": files, "bytes": int(said["ours"]), "worker_bytes": memory}


def sequential(server, rounds, quick):
    size = 100 * MIB if quick else GIB
    image = image_of(server, "large", "1500M", lambda folder: one_file(folder, size))
    script = 'dd if="$1" of=/dev/null bs=1M 2>/dev/null'
    plain = f'dd if="$1" of=/dev/null bs=1M count={size // MIB} 2>/dev/null'
    found, _, _ = beside(server, "large", script.replace("$1", "$1/large"), rounds)
    found["plain"] = [timed(plain, image)[0] for _ in range(rounds)]
    # The same bytes as the daemon hands them out, without a mount.
    found["export"] = [timed('nbdcopy "$1" null:', server.uri("large@v1"))[0] for _ in range(rounds)]
    return {**found, "bytes": size}


def listing(server, rounds, quick):
    files = 5_000 if quick else 100_000
    image_of(server, "many", "1G", lambda folder: many_files(folder, files))
    found, memory, _ = beside(server, "many", 'ls -lR "$1" | wc -l', rounds)
    return {**found, "files": files, "worker_bytes": memory}


def mounting(server, rounds, _):
    times = []
    for _ in range(rounds * 5):
        with ours(server, "root") as (_, _, ms):
            times.append(ms)
    return {"ms": sorted(times)}


def differences(server, rounds, quick):
    """A hundred files of a MiB come into a file system of 20 GB, and some go; what differs, file by file."""
    files, total = (2_000, 100 * MIB) if quick else (24_000, GIB)
    image_of(server, "wide", "20G", lambda folder: root_like_debians(folder, files, total))
    piece = server.folder / "piece"
    piece.write_bytes(random.Random(5).randbytes(MIB))
    lines = ["mkdir new", *(f"write {piece} new/{i}" for i in range(100)), "rm usr/share0/package-0/file-0",
             "set_inode_field usr/share3/package-1/file-24 mode 0100600"]
    commands = server.folder / "commands"
    commands.write_text("\n".join(lines) + "\n")
    at = server.folder / "fuse"
    at.mkdir()
    process = subprocess.Popen(["nbdfuse", at, server.uri("wide")], stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while not (at / "nbd").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failed("nbdfuse does not come up")
            time.sleep(0.05)
        run("debugfs", "-w", "-f", commands, at / "nbd", env=with_sbin(), timeout=900)
    finally:
        run("fusermount3", "-u", at, check=False)
        end(process)
    server.cairn("checkpoint", "create", "wide")
    changed = server.cairn("checkpoint", "diff", "wide", "v1", "v2")
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        found = server.cairn("checkpoint", "diff", "--files", "wide", "v1", "v2")
        times.append(time.perf_counter() - begin)
    if len(found) < 102:
        raise Failed(f"only {len(found)} files differ")
    return {"seconds": times, "files": files, "found": len(found),
            "changed_bytes": sum(extent["length"] for extent in changed["extents"])}


def measure(args):
    """All of it; the peer in the same run."""
    rounds = 2 if args.quick else 3
    found = {}
    parts = {"tar": tar, "mount": mounting, "sequential": sequential, "listing": listing, "differences": differences}
    with daemon() as server:
        for name, part in parts.items():
            found[name] = part(server, rounds, args.quick)
            print(f"bench: {shown(name, found[name])}", file=sys.stderr, flush=True)
    return found


def shown(name, figures):
    """Medians, for whoever waits for them."""
    cells = [f"{key} {statistics.median(value):.3f}" if isinstance(value, list) else f"{key} {value}"
             for key, value in figures.items()]
    return f"{name}: {', '.join(cells)}"
