"""A program on a terminal of its own (a pty): what it shows, and keys for it."""

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time

from .processes import Failed


class Terminal:
    """A program that has a terminal of `rows` and `columns`, and ends with the value."""

    def __init__(self, *command, env=None, cwd=None, rows=24, columns=80):
        self.shown = b""
        self.status = None
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                if cwd:
                    os.chdir(cwd)
                os.execvpe(str(command[0]), [str(word) for word in command], env or os.environ)
            finally:
                os._exit(127)
        self.resize(rows, columns)

    def resize(self, rows, columns):
        """Gives the terminal another size, which its program is told of."""
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def keys(self, text):
        """Types."""
        os.write(self.fd, text.encode())

    def echoes(self):
        """Whether the terminal shows what is typed, and hands it over by lines: as it is when nobody changed it."""
        flags = termios.tcgetattr(self.fd)[3]
        return bool(flags & termios.ECHO) and bool(flags & termios.ICANON)

    def until(self, wanted, limit=60):
        """Waits until the program has shown `wanted`; returns what came up to there, and forgets it."""
        wanted, deadline = wanted.encode(), time.monotonic() + limit
        while wanted not in self.shown:
            if not self._read(max(0, deadline - time.monotonic())):
                raise Failed(f"{wanted!r} is not shown, but {self.shown[-1500:]!r}")
        before, self.shown = self.shown.split(wanted, 1)
        return (before + wanted).decode(errors="replace")

    def _read(self, limit):
        if not select.select([self.fd], [], [], limit)[0]:
            return False
        try:
            piece = os.read(self.fd, 65536)
        except OSError:
            return False
        self.shown += piece
        return bool(piece)

    def end(self, limit=60):
        """Waits for the program's end; returns its exit status."""
        deadline = time.monotonic() + limit
        while self.status is None:
            self._read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                raise Failed(f"the program does not end; it shows {self.shown[-1500:]!r}")
        while self._read(0):
            pass
        return self.status

    def gone(self, limit=30):
        """Waits for the program's end without reading what it shows."""
        deadline = time.monotonic() + limit
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                return
            if time.monotonic() > deadline:
                raise Failed("the program does not end")
            time.sleep(0.02)

    def close(self):
        """Ends the program if it still runs."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.status = -9
        os.close(self.fd)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
