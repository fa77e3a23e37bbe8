"""The storage daemon on a fresh pool, and the `cairn` command."""

import json
import os
import socket
import subprocess
import time
from contextlib import contextmanager

from .processes import ROOT, Failed, end, run, scratch, tail

START_S = 20


def build():
    """Builds the release binary, unless $CAIRN_BIN names one; returns its path."""
    given = os.environ.get("CAIRN_BIN")
    if given:
        return given
    run("cargo", "build", "--release", "--locked", "--quiet", "-p", "cairn", timeout=1800, cwd=ROOT)
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    return os.path.join(ROOT, target, "release", "cairn")


class Daemon:
    """`cairn serve` on a pool below `folder`, on a Unix socket and, if asked, a loopback port."""

    def __init__(self, folder, tcp=False, binary=None, name="pool"):
        self.binary = binary or build()
        self.folder = folder
        self.pool = folder / name
        self.socket = folder / f"{name}.nbd"
        self.log = folder / f"{name}.log"
        self.more, self.environment = [], {}
        self.port = free_port() if tcp else None
        self.process = None
        self.more = []

    def start(self):
        """Starts the daemon and waits until it listens."""
        listen = ["--nbd", f"unix:{self.socket}"]
        if self.port:
            listen += ["--nbd", f"tcp:127.0.0.1:{self.port}"]
        command = [self.binary, "serve", "--pool", str(self.pool), *listen, *self.more]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **self.environment}
            )
        deadline = time.monotonic() + START_S
        while not self.listens():
            if self.process.poll() is not None or time.monotonic() > deadline:
                end(self.process)
                raise Failed(f"the daemon did not start:\n{tail(self.log)}")
            time.sleep(0.02)

    def listens(self):
        """Whether a client can connect."""
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
                return True
            except OSError:
                return False

    def stop(self):
        """Ends the daemon; complains if it did not end cleanly."""
        process, self.process = self.process, None
        if process is None:
            return
        status = end(process)
        if status != 0:
            raise Failed(f"the daemon ended with status {status}:\n{tail(self.log)}")

    def kill(self):
        """Ends the daemon as the loss of its host would."""
        process, self.process = self.process, None
        process.kill()
        process.wait()

    def cairn(self, *words):
        """Runs a `cairn` command on the pool; returns its answer."""
        _, out, _ = run(self.binary, "--pool", self.pool, "--json", *words)
        return json.loads(out)

    def uri(self, export=""):
        """The export's URI on the Unix socket."""
        return f"nbd+unix:///{export}?socket={self.socket}"


@contextmanager
def daemon(tcp=False, more=()):
    """A running daemon on a fresh pool, with `more` options; both are gone at the end."""
    with scratch() as folder:
        server = Daemon(folder, tcp)
        server.more = list(more)
        server.start()
        try:
            yield server
        except BaseException:
            if server.process is not None:
                end(server.process)
            raise
        server.stop()


def free_port():
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
