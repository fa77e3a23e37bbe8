"""Act three: a sandbox, as a platform or a coding agent has it.

Made with curl, used through the official JavaScript SDK, checkpointed with its memory, wrecked, looked into, restored;
five copies of it; and nothing is left behind.
"""

import json
import subprocess
from contextlib import ExitStack

from .api import api
from .processes import ROOT, Failed, run
from .stage import must

COPIES = 5
# What nobody has read before it runs.
UNTRUSTED = """
echo precious >/root/precious
i=0
while :; do i=$((i + 1)); echo $i >/root/count; sleep 0.2; done >/dev/null 2>&1 &
echo "$(uname -s) as $(id -un), $(nproc) processor, $(free -m | awk '/^Mem/ { print $2 }') MiB"
"""
WRECK = "rm -rf /root /etc; sync; rm -rf /usr /sbin /bin"
COUNT = "cat /root/count"


class ThirdAct:
    """One sandbox, and its copies."""

    def __init__(self, one, steps):
        self.one, self.steps = one, steps

    def curl(self, method, path, body=None):
        """A request by curl, as the tour shows it; its answer."""
        data = [] if body is None else ["-d", json.dumps(body)]
        _, said, _ = run("curl", "-sS", "--fail-with-body", "-X", method, f"{self.one.url}{path}",
                         "-H", f"Authorization: Bearer {self.one.token}", *data)
        return said

    def lines(self, path, body=None):
        """What is told line by line; the last line, which must say that it is done."""
        last = json.loads(self.curl("POST", path, body).splitlines()[-1])
        must(last["type"] == "complete", f"{path}: {last}")
        return last["data"]

    def sdk(self, command):
        """Standard output of a command that the SDK runs in the sandbox."""
        _, where, _ = run(ROOT / "scripts" / "sdk", timeout=600)
        where = where.strip()
        words = [f"{where}/bin/node", ROOT / "scripts/support/demo.mjs", where, self.one.url, self.one.token, "web", command]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            raise Failed(f"the SDK: {done.stdout[-1000:]} {done.stderr[-2000:]}")
        return done.stdout.strip()

    def play(self):
        """All of it."""
        step = self.steps.step
        with step("making a sandbox") as said:
            made = json.loads(self.curl("PUT", "/v1/sprites/web", {}))
            said(f"curl -X PUT …/v1/sprites/web: {made['status']}, it costs nothing until it is used")
        with step("running untrusted code in it") as said:
            told = self.sdk(UNTRUSTED)
            said("the JavaScript SDK ran code that nobody has read, in a guest that booted for it:")
            said(told)
        with step("taking a checkpoint with memory") as said:
            before = int(self.sdk(COUNT))
            said(f"{self.lines('/v1/sprites/web/checkpoint', {'comment': 'it works', 'memory': True})}, disk and memory;")
            said(f"a process of the guest had counted to {before}")
        with step("wrecking it") as said:
            self.sdk(WRECK)
            must(self.one.ask("/v1/sprites/web/fs/read?path=/root/precious")[0] != 200, "the file is still there")
            said(f"the guest: {WRECK}; not even a shell is left")
        with step("looking into the checkpoint") as said:
            old = self.curl("GET", "/v1/sprites/web/checkpoints/v1/fs/read?path=/root/precious")
            lost = json.loads(self.curl("GET", "/v1/sprites/web/checkpoints/v1/diff/Current"))["files"]
            must(old == "precious\n", f"the checkpoint has {old!r}")
            gone = sum(f["change"] == "removed" for f in lost)
            must(gone > 0, "the differences tell of no file that has gone")
            said(f"the lost file as it is in v1: {old.strip()}; files and folders that have gone since: {gone}")
        with step("restoring") as said:
            done = self.lines("/v1/sprites/web/checkpoints/v1/restore")
            must(self.sdk("cat /root/precious") == "precious", "the file is not back")
            first = int(self.sdk(COUNT))
            must(before <= first < before + 50, f"it counts from {first}, and had come to {before}")
            must(int(self.sdk(f"sleep 1; {COUNT}")) > first, "it does not count any more")
            said(f"{done}: the file is back, and the process that counted goes on at {first}")
        with step(f"forking {COPIES} copies") as said:
            for n in range(COPIES):
                self.curl("POST", "/v1/sprites", {"name": f"copy{n}", "from": {"sprite": "web", "checkpoint": "v1"}})
            took = [json.loads(self.curl("POST", f"/v1/sprites/copy{n}/exec", {"command": "cat /root/precious"})) for n in range(COPIES)]
            must(all(one["stdout"] == "precious\n" for one in took), f"the copies say {took}")
            said(f"{COPIES} copies of v1, each booted, each with the file and a disk of its own")
        with step("removing all") as said:
            for name in ["web", *(f"copy{n}" for n in range(COPIES))]:
                self.curl("DELETE", f"/v1/sprites/{name}")
            left = [v["name"] for v in self.one.cairn("volume", "list") if v["name"].startswith("sandbox-")]
            must(not left and not self.one.cairn("vm", "list"), f"left behind: {left}")
            said("all sandboxes deleted: no machine and no volume of theirs is left")


def third_act(steps):
    """Plays it on a daemon of its own."""
    with ExitStack() as stack:
        with steps.step("serving the sandbox API") as said:
            one = stack.enter_context(api())
            said("cairn serve --api; cairn image build tiny; cairn token create")
        ThirdAct(one, steps).play()
