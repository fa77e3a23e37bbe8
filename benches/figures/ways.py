"""Ways to reach the disk and the sockets: system calls, io_uring and tokio-uring, without the store."""

import json

from support.processes import run, scratch

from .store import built


def measure(args):
    """What `cairn-bench io` prints; its files lie where those of the other parts do."""
    with scratch() as folder:
        _, out, _ = run(built(), "io", folder, "--seconds", "0.02" if args.quick else "0.2", timeout=1800)
        return json.loads(out)
