"""What must not grow: with the disk, with the number of checkpoints, with the number of forks."""

import json
import os
import random
import socket
import statistics
import threading
import time

from support.daemon import daemon
from support.processes import ROOT, run, scratch

from .compare import fio


class Control:
    """One connection to the control socket: a command costs no process."""

    def __init__(self, server):
        self.stream = socket.socket(socket.AF_UNIX)
        self.stream.connect(str(server.pool / "control.sock"))
        self.lines = self.stream.makefile("r")

    def ask(self, op, **more):
        """The answer, and how long it took in ms."""
        begin = time.perf_counter()
        self.stream.sendall(json.dumps({"op": op, **more}).encode() + b"\n")
        answer = json.loads(self.lines.readline())
        if "error" in answer:
            raise RuntimeError(f"{op}: {answer['error']}")
        return answer, (time.perf_counter() - begin) * 1e3


def spread(values):
    ordered = sorted(values)
    at = lambda p: ordered[min(len(ordered) - 1, len(ordered) * p // 100)]  # noqa: E731
    return {"p50": at(50), "p99": at(99), "max": ordered[-1], "times": len(ordered)}


def resident(server):
    with open(f"/proc/{server.process.pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


class Writer(threading.Thread):
    """4 KiB writes without a break; remembers when each was done."""

    def __init__(self, uri):
        import nbd

        super().__init__(daemon=True)
        self.handle, self.done, self.over = nbd.NBD(), [], False
        self.handle.connect_uri(uri)

    def run(self):
        data, places = os.urandom(4096), random.Random(1)
        while not self.over:
            self.handle.pwrite(data, places.randrange(1 << 18) * 4096)
            self.done.append(time.perf_counter())


def gap(times, begin, end):
    """The longest time between two completed writes, ms."""
    inside = [begin] + [t for t in times if begin <= t <= end + 0.02]
    return max((b - a for a, b in zip(inside, inside[1:])), default=end - begin) * 1e3


def pause(args):
    """Checkpoints while a writer writes and 1 GiB has just been written."""
    import nbd

    times, dirty = (3, 256 << 20) if args.quick else (10, 1 << 30)
    with daemon() as server:
        server.cairn("volume", "create", "vol", "--size", "4G")
        control, writer, filler = Control(server), Writer(server.uri("vol")), nbd.NBD()
        filler.connect_uri(server.uri("vol"))
        writer.start()
        commands, gaps, quiet = [], [], []
        for turn in range(times):
            for offset in range(0, dirty, 1 << 20):
                filler.pwrite(os.urandom(1 << 20), offset + turn * 4096)
            begin = time.perf_counter()
            _, took = control.ask("checkpoint.create", volume="vol")
            end = time.perf_counter()
            time.sleep(0.05)
            commands.append(took)
            gaps.append(gap(writer.done, begin, end))
            begin = time.perf_counter()
            time.sleep(end - begin if end > begin else 0.01)
            time.sleep(0.03)
            quiet.append(gap(writer.done, begin, begin + 0.01))
        writer.over = True
        writer.join()
        return {"checkpoint_ms": spread(commands), "write_gap_ms": spread(gaps), "gap_without_ms": spread(quiet)}


def built():
    """The path of `cairn-bench`, which is as new as its source."""
    run("cargo", "build", "--release", "--locked", "--quiet", "-p", "cairn-bench", timeout=1800, cwd=ROOT)
    return os.path.join(ROOT, os.environ.get("CARGO_TARGET_DIR", "target"), "release", "cairn-bench")


def cost(args):
    """The cost table, on a pool made synthetically."""
    binary, found = built(), {}
    for name, gib, words in (
        ("sequential", 16 if args.quick else args.gib, ()),
        ("scattered", 1 if args.quick else min(args.gib, 32), ("--scattered",)),
    ):
        with scratch() as folder:
            pool = folder / "pool"
            _, out, _ = run(binary, "make", pool, "--mapped", str(gib), *words, timeout=3600)
            made = json.loads(out)
            _, out, _ = run(binary, "cost", pool, timeout=900)
            found[name] = {"make": made, **json.loads(out)}
    return found


def history(args):
    """Cost of a checkpoint, of reads and of writes, behind 1, 100 and 10,000 checkpoints.

    A second volume without checkpoints gets the same requests in turns: what differs is the history.
    """
    rows, taken = [], 0
    with daemon() as server:
        for name in ("vol", "plain"):
            server.cairn("volume", "create", name, "--size", "4G")
            fio(server.uri(name), "write", "1m", 8, 0)
        control, seconds = Control(server), 1 if args.quick else 3
        for count in (1, 100) if args.quick else (1, 100, 10_000):
            while taken < count:
                control.ask("checkpoint.create", volume="vol")
                taken += 1
            row = {"checkpoints": count}
            for rw in ("write", "read"):
                for name in ("vol", "plain") * (2 if args.quick else 5):
                    speed = fio(server.uri(name), f"rand{rw}", "4k", 1, seconds)
                    row.setdefault(f"{rw}_iops", {}).setdefault(name, []).append(speed)
            cost_ms = [control.ask("checkpoint.create", volume="vol")[1] for _ in range(50)]
            taken += 50
            rows.append({**row, "create_ms": spread(cost_ms)})
    return rows


def forks(args):
    """Memory and opening time of forks of one checkpoint, each written once."""
    import nbd

    count = 50 if args.quick else 1000
    with daemon() as server:
        server.cairn("volume", "create", "vol", "--size", "4G")
        control = Control(server)
        handle = nbd.NBD()
        handle.connect_uri(server.uri("vol"))
        for i in range(64):
            handle.pwrite(os.urandom(1 << 20), i << 24)
        control.ask("checkpoint.create", volume="vol")
        before, made, opened = resident(server), [], []
        for i in range(count):
            made.append(control.ask("fork", volume="vol@v1", name=f"fork-{i}")[1])
            begin = time.perf_counter()
            fork = nbd.NBD()
            fork.connect_uri(server.uri(f"fork-{i}"))
            fork.pread(4096, 0)
            opened.append((time.perf_counter() - begin) * 1e3)
            fork.pwrite(b"x" * 4096, i * 4096)
            fork.shutdown()
        return {"forks": count, "fork_ms": spread(made), "open_ms": spread(opened),
                "resident_each_bytes": (resident(server) - before) / count}


def rest(_):
    """Memory of a daemon with one empty volume of 100 GB."""
    with daemon() as server:
        server.cairn("volume", "create", "vol", "--size", "100G")
        time.sleep(2)
        return {"resident_bytes": resident(server)}


def guests(args):
    """Requests out of a guest's memory beside NBD's, as the benchmark prints them."""
    command = ("cargo", "bench", "--locked", "--quiet", "-p", "nbd-server", "--bench", "vhost_user", "--", "200" if args.quick else "1000")
    _, out, _ = run(*command, timeout=1800, cwd=ROOT)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    return [
        {"what": what, "vhost_user": int(guest), "nbd": int(plain), "to_nbd": float(ratio), "nbd_many": int(many), "to_nbd_many": float(best)}
        for what, guest, plain, ratio, many, best in rows[2:]
    ]


def hostile(_):
    """An honest client's answers while others misbehave; its rows, as the benchmark prints them."""
    command = ("cargo", "bench", "--locked", "--quiet", "-p", "nbd-server", "--bench", "hostile_p99")
    _, out, _ = run(*command, timeout=1800, cwd=ROOT)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    return [
        {"attack": name, "p50_us": int(p50), "p99_us": int(p99), "max_us": int(most), "to_alone": float(ratio)}
        for name, p50, p99, most, ratio in rows[2:]
    ]
