"""The NBD path beside its peers: same machine, same run, in turns, so that ratios mean something.

nbdkit's memory plugin is the ceiling of an NBD server (no disk at all); qemu-nbd serves qcow2 and raw
files with cache=none on the disk that holds our pool.
"""

import json
import subprocess
import time
from contextlib import ExitStack

from support.daemon import daemon
from support.processes import Failed, end, run, scratch

WORKLOADS = [  # name, rw, block size, queue depth, more fio options
    ("4 KiB random write, q1", "randwrite", "4k", 1, []),
    ("4 KiB random write, q32", "randwrite", "4k", 32, []),
    ("4 KiB write + flush, q1", "randwrite", "4k", 1, ["--fsync=1"]),
    ("4 KiB random read, q1", "randread", "4k", 1, []),
    ("4 KiB random read, q32", "randread", "4k", 32, []),
    ("1 MiB sequential write, q8", "write", "1m", 8, []),
    ("1 MiB sequential read, q8", "read", "1m", 8, []),
]
SIZE = "2G"


def fio(uri, rw, block, depth, seconds, extra=()):
    """Requests per second of one run."""
    timed = [f"--runtime={seconds}", "--time_based"] if seconds else []
    _, out, _ = run(
        "fio", "--name=t", "--ioengine=nbd", f"--uri={uri}", f"--rw={rw}", f"--bs={block}", f"--iodepth={depth}",
        f"--size={SIZE}", "--randrepeat=0", "--output-format=json", *timed, *extra, timeout=300,
    )
    job = json.loads(out[out.index("{"):])["jobs"][0]
    return job["read" if "read" in rw else "write"]["iops"]


def peers(folder, stack):
    """Starts the peers; their URIs by name."""
    uris = {}
    for name, kind in (("nbdkit memory", None), ("qemu-nbd qcow2", "qcow2"), ("qemu-nbd raw", "raw")):
        socket, file = folder / f"{kind}.sock", folder / f"{kind}.img"
        command = ["nbdkit", "-f", "-U", str(socket), "memory", SIZE]
        if kind:
            run("qemu-img", "create", "-q", "-f", kind, file, SIZE)
            command = ["qemu-nbd", "-k", str(socket), "-t", "-e", "8", "-f", kind, "--cache=none", "--aio=io_uring",
                       "--discard=unmap", str(file)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(end, process)
        deadline = time.monotonic() + 20
        while not socket.exists():
            if time.monotonic() > deadline:
                raise Failed(f"{name} did not start")
            time.sleep(0.05)
        uris[name] = f"nbd+unix:///?socket={socket}"
    return uris


def measure(args):
    """{workload: {server: [requests per second of each round]}}"""
    rounds, seconds = (1, 1) if args.quick else (3, 3)
    with ExitStack() as stack:
        ours = stack.enter_context(daemon())
        ours.cairn("volume", "create", "vol", "--size", "4G")
        targets = {"cairn": ours.uri("vol"), **peers(stack.enter_context(scratch()), stack)}
        for uri in targets.values():
            fio(uri, "write", "1m", 8, 0)
        found = {w[0]: {name: [] for name in targets} for w in WORKLOADS}
        for _ in range(rounds):
            for name, rw, block, depth, extra in WORKLOADS:
                for server, uri in targets.items():
                    found[name][server].append(fio(uri, rw, block, depth, seconds, extra))
        return found
