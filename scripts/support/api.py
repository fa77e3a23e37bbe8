"""A daemon that serves the sandbox API with the tiny image, and requests to it."""

import json
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

from .daemon import daemon, free_port
from .processes import ROOT, Failed, run


class Api:
    """The API of `server`, at `url`."""

    def __init__(self, server, url):
        self.server, self.url, self.context = server, url, None
        self.token = None

    def cairn(self, *words):
        """Carries out a command on the pool; returns its answer."""
        _, out, _ = run(self.server.binary, "--pool", self.server.pool, "--json", *words, timeout=200)
        return json.loads(out)

    def ask(self, path, method="GET", body=None, bearer=..., head=()):
        """One request: status, body, and headers. `body` is JSON unless it is bytes."""
        bearer = self.token if bearer is ... else bearer
        head = {**dict(head), **({"Authorization": f"Bearer {bearer}"} if bearer else {})}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, head, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120, context=self.context) as answer:
                return answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as e:
            return e.code, e.read(), e.headers

    def json(self, path, method="GET", body=None, wanted=200):
        """As `ask`, of a request that must have the status `wanted`; returns what the body says."""
        status, said, _ = self.ask(path, method, body)
        if status != wanted:
            raise Failed(f"{method} {path}: {status} {said[:2000]}")
        return json.loads(said)

    def exec(self, name, command):
        """Standard output of a shell's command that must succeed."""
        done = self.json(f"/v1/sprites/{name}/exec", "POST", {"command": command})
        if done["exit_code"] != 0:
            raise Failed(f"{command}: {done}")
        return done["stdout"]

    def wait(self):
        """Waits until the API answers."""
        for _ in range(200):
            try:
                return self.ask("/v1/organization")[0] == 200
            except OSError:
                time.sleep(0.05)
        raise Failed("the API does not answer")


@contextmanager
def api(more=(), scheme="http", context=None):
    """A daemon with the API and the tiny image, and a token for it; no sandbox of it is left."""
    _, agent, _ = run(ROOT / "scripts" / "agent", timeout=600)
    port = free_port()
    with daemon(more=[f"--api=127.0.0.1:{port}", *more]) as server:
        one = Api(server, f"{scheme}://127.0.0.1:{port}")
        one.context = context
        one.token = one.cairn("token", "create")["token"]
        try:
            one.cairn("image", "build", "tiny", "--agent", agent.strip())
            one.wait()
            yield one
        finally:
            # A machine outlives its daemon.
            if server.process is None:
                server.start()
            for machine in one.cairn("vm", "list"):
                one.cairn("vm", "rm", machine["name"], "--force")
