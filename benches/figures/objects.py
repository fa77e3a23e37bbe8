"""The object tier beside plain requests to the same server: an S3 server (moto) on loopback, alone or behind a proxy
that adds latency to each request."""

import http.client
import os
import random
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from support.daemon import Daemon
from support.processes import ROOT, Failed, end, run, scratch

from .store import resident, spread

LATENCY_MS = 30
MIB = 1 << 20
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1"}


@contextmanager
def child(*command):
    """A process that prints its URL and ends with its standard input."""
    process = subprocess.Popen([str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        if not url:
            raise Failed(f"{command[0]} did not start")
        yield url
    finally:
        process.stdin.close()
        end(process)


def proxy(url):
    """The server at `url`, each of its answers later by LATENCY_MS."""
    run("cargo", "build", "--release", "--locked", "--quiet", "-p", "nbd-server", "--example", "slow_proxy",
        "--features", "testing", timeout=1800, cwd=ROOT)
    target = Path(ROOT, os.environ.get("CARGO_TARGET_DIR", "target"))
    return child(target / "release/examples/slow_proxy", urlsplit(url).netloc, LATENCY_MS)


class Server(Daemon):
    """A daemon whose volumes are in a bucket, too."""

    def __init__(self, folder, url, bucket):
        super().__init__(folder)
        self.url, self.bucket = url, bucket
        self.more = ["--object-store", f"s3://{bucket}/pool", "--s3-endpoint", url]

    def metric(self, name):
        text = self.cairn("stats", "--metrics")
        return int(re.search(rf"^{name} (\d+)", text, re.M).group(1))


def make_bucket(url, bucket):
    request(url, "PUT", f"/{bucket}")


SIGNED = "AWS4-HMAC-SHA256 Credential=bench/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


def request(url, method, path, body=None, headers={}):
    """One plain request; the server takes any signature."""
    place, headers = urlsplit(url), {"Authorization": SIGNED, **headers}
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=120)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    data = answer.read()
    if answer.status >= 300:
        raise Failed(f"{method} {path}: {answer.status} {data[:200]}")
    return data


@contextmanager
def serving(url, bucket):
    """A daemon on a fresh pool and a fresh bucket; the pool is gone at the end."""
    make_bucket(url, bucket)
    with scratch() as folder:
        server = Server(folder, url, bucket)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def connect(server, export):
    import nbd

    handle = nbd.NBD()
    handle.connect_uri(server.uri(export))
    return handle


def noise(blocks, seed):
    """1 MiB pieces that do not compress."""
    source = random.Random(seed)
    return [source.randbytes(MIB) for _ in range(blocks)]


def plain_puts(url, bucket, pieces, count):
    """MiB/s of so many puts of 32 MiB by four clients."""
    body = b"".join(pieces[:32])

    def put(i):
        request(url, "PUT", f"/{bucket}/plain/{i}", body)

    begin = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(count)))
    return count * 32 / (time.perf_counter() - begin)


def flushed_writes(handle, seconds):
    """Times of 4 KiB writes with a flush, ms."""
    places, data, times = random.Random(5), os.urandom(4096), []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        begin = time.perf_counter()
        handle.pwrite(data, places.randrange(1 << 16) * 4096)
        handle.flush()
        times.append((time.perf_counter() - begin) * 1e3)
    return times


def upload(args, url):
    """A sequential fill, and how long until all of it is in the store."""
    gib = 1 if args.quick else 2
    pieces = noise(64, 1)
    with serving(url, "fill") as server:
        server.cairn("volume", "create", "disk", "--size", "8G")
        handle = connect(server, "disk")
        plain = plain_puts(url, "fill", pieces, gib * 32)
        puts, begin = server.metric("cairn_object_put_requests_total"), time.perf_counter()
        for i in range(gib * 1024):
            handle.pwrite(pieces[i % 64][i % 7:] + pieces[(i + 1) % 64][:i % 7], i * MIB)
        handle.flush()
        written = time.perf_counter() - begin
        server.cairn("volume", "sync", "disk")
        took = time.perf_counter() - begin
        stats = server.cairn("stats")
        return {
            "gib": gib, "plain_mib_s": plain, "mib_s": gib * 1024 / took, "written_s": written, "all_there_s": took,
            "puts": server.metric("cairn_object_put_requests_total") - puts,
            "sent_bytes": stats["sent_bytes"], "block_bytes": stats["sent_block_bytes"],
        }


def foreground(args, url):
    """Writes with flushes, alone and beside a bulk writer whose data is uploaded, with a store and without one."""
    seconds = 4 if args.quick else 10
    found = {}
    make_bucket(url, "front")
    for name in ("without", "with"):
        with scratch() as folder:
            server = Server(folder, url, "front")
            if name == "without":
                server.more = []
            server.start()
            try:
                for volume in ("quiet", "busy"):
                    server.cairn("volume", "create", f"{volume}-{name}", "--size", "4G")
                handle, over = connect(server, f"quiet-{name}"), threading.Event()

                def fill():
                    bulk, pieces, i = connect(server, f"busy-{name}"), noise(16, 3), 0
                    while not over.wait(0.02):
                        bulk.pwrite(pieces[i % 16], i % 2048 * MIB)
                        i += 1

                alone = flushed_writes(handle, seconds)
                thread = threading.Thread(target=fill, daemon=True)
                thread.start()
                beside = flushed_writes(handle, seconds)
                over.set()
                thread.join()
                found[name] = {"alone": spread(alone), "beside": spread(beside), "resident": resident(server)}
            finally:
                server.stop()
    return found


def overwrites(args, url):
    """4 KiB overwrites of a hot gigabyte: what is overwritten before a round is never sent."""
    seconds = 10 if args.quick else 60
    with serving(url, "hot") as server:
        server.cairn("volume", "create", "disk", "--size", "1G")
        handle, places, data = connect(server, "disk"), random.Random(7), noise(1, 9)[0]
        begin, done = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            at = places.randrange(255) * 4096
            for _ in range(64):
                # Nine of ten writes go to a tenth of the disk.
                block = places.randrange(1 << 18) if places.random() < 0.1 else places.randrange(26000)
                handle.pwrite(data[at:at + 4096], block * 4096)
                done += 1
        server.cairn("volume", "sync", "disk")
        stats = server.cairn("stats")
        return {
            "seconds": seconds, "written_bytes": done * 4096, "sent_bytes": stats["sent_bytes"],
            "block_bytes": stats["sent_block_bytes"], "puts": server.metric("cairn_object_put_requests_total"),
        }


def cold(args, url):
    """A big volume, let go by one host, on another one that has nothing: behind a proxy with latency."""
    gib = 1 if args.quick else 20
    make_bucket(url, "cold")
    with scratch() as folder:
        (folder / "first").mkdir()
        first = Server(folder / "first", url, "cold")
        first.start()
        try:
            first.cairn("volume", "create", "disk", "--size", "100G")
            handle = connect(first, "disk")
            # Every block differs, and compresses well: the server keeps all of it in memory.
            for i in range(gib * 1024):
                piece = b"".join((i * 256 + k).to_bytes(8, "little") * 512 for k in range(256))
                handle.pwrite(piece, i * 5 * MIB)
            noisy = noise(256 if args.quick else 512, 11)
            for i, piece in enumerate(noisy):
                handle.pwrite(piece, (90 << 30) + i * MIB)
            handle.shutdown()
            run(first.binary, "--pool", first.pool, "volume", "detach", "disk", timeout=900)
        finally:
            first.stop()
        with proxy(url) as slow:
            (folder / "second").mkdir()
            second = Server(folder / "second", slow, "cold")
            second.start()
            try:
                begin = time.perf_counter()
                second.cairn("volume", "attach", "disk")
                attached = time.perf_counter() - begin
                handle = connect(second, "disk")
                begin = time.perf_counter()
                got = handle.pread(4096, 5 * MIB * 77)
                first_read = time.perf_counter() - begin
                if got != (77 * 256).to_bytes(8, "little") * 512:
                    raise Failed("the first block read from the store is not the one that was written")
                gets = second.metric("cairn_object_get_requests_total")
                received = second.metric("cairn_object_received_bytes_total")
                scattered = []
                for i in random.Random(3).sample(range(gib * 1024), 30):
                    begin = time.perf_counter()
                    handle.pread(4096, i * 5 * MIB)
                    scattered.append((time.perf_counter() - begin) * 1e3)
                begin = time.perf_counter()
                for i in range(0, len(noisy)):
                    if handle.pread(MIB, (90 << 30) + i * MIB) != noisy[i]:
                        raise Failed("a block read from the store is not the one that was written")
                sequential = len(noisy) / (time.perf_counter() - begin)
                plain = plain_gets(slow, noisy)
                return {
                    "gib": gib, "latency_ms": LATENCY_MS, "attach_ms": attached * 1e3, "first_read_ms": first_read * 1e3,
                    "gets": gets, "received_bytes": received, "scattered": spread(scattered),
                    "sequential_mib_s": sequential, "plain_mib_s": plain, "resident": resident(second),
                }
            finally:
                second.stop()


def plain_gets(url, pieces):
    """MiB/s of 16 clients that get the same bytes in ranges of 1 MiB."""
    for i in range(0, len(pieces), 32):
        request(url, "PUT", f"/cold/plain/{i // 32}", b"".join(pieces[i:i + 32]))

    def get(i):
        first = i % 32 * MIB
        data = request(url, "GET", f"/cold/plain/{i // 32}", headers={"Range": f"bytes={first}-{first + MIB - 1}"})
        assert len(data) == MIB

    begin = time.perf_counter()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(get, range(len(pieces))))
    return len(pieces) / (time.perf_counter() - begin)


def measure(args):
    os.environ.update(ENVIRONMENT)
    found = {}
    for part in (upload, foreground, overwrites, cold):
        print(f"bench: objects: {part.__name__} ...", file=sys.stderr, flush=True)
        # Each with a server of its own, which keeps all in memory.
        with child(Path(ROOT) / "scripts/moto") as url:
            found[part.__name__] = part(args, url)
    return found

