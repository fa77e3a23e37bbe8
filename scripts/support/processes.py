"""Child processes that end with the script that started them.

Promises: a child is ended by its own process id, politely first; a script that is told to stop
(SIGTERM, SIGINT) unwinds through its `with` blocks, so that nothing it started stays behind.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Failed(Exception):
    """Something a script relied on did not hold; the text says what, and shows the evidence."""


def unwind_when_told_to_stop():
    """Turns SIGTERM into an exception, as SIGINT is one already."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def end(process, wait_s=10):
    """Asks a child to stop, makes sure that it has, and returns its exit status."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def run(*command, stdin=None, timeout=120, check=True, env=None, cwd=None):
    """Runs a program to its end; returns (exit status, stdout, stderr), or raises `Failed`."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True, text=True, timeout=timeout, env=env, cwd=cwd, errors="replace",
        )
    except FileNotFoundError as error:
        raise Failed(f"{words[0]} is not installed: run scripts/setup test") from error
    except subprocess.TimeoutExpired as error:
        raise Failed(f"no end after {timeout} s of {shown(words)}") from error
    if check and done.returncode != 0:
        said = (done.stdout + done.stderr).strip().splitlines()[-12:]
        raise Failed("\n".join([f"exit status {done.returncode} of {shown(words)}", *said]))
    return done.returncode, done.stdout, done.stderr


def shown(words):
    """A command as one line of an error message."""
    line = " ".join(" ".join(words).split())
    return line if len(line) < 300 else f"{line[:150]} ... {line[-150:]}"


def children(pid, name):
    """Processes that `pid` started and that have `name` among their words."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = re.search(r"^PPid:\t(\d+)$", (entry / "status").read_text(), re.M)
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent and int(parent.group(1)) == pid and name.encode() in words:
            found.append(int(entry.name))
    return found


@contextmanager
def child(*command):
    """A program that serves for as long as the `with` block holds its standard input."""
    process = subprocess.Popen([str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.stdin.close()
        end(process)
        process.stdout.close()


@contextmanager
def scratch():
    """A temporary folder with a short name (socket paths are bounded), removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="cairn-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tail(path, lines=25):
    """The last lines of a file, for an error message."""
    try:
        text = Path(path).read_text(errors="replace")
    except OSError:
        return "(nothing)"
    return "\n".join(text.splitlines()[-lines:])


def with_sbin():
    """The environment with the folders in which Debian keeps mkfs and its like."""
    return {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin", "LC_ALL": "C"}
