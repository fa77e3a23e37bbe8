"""The sandbox API: round trips, making sandboxes, checkpoints; through HTTP as its clients use it."""

import http.client
import json
import statistics
import time

from support.api import api
from support.processes import Failed


class Client:
    """One connection that stays open."""

    def __init__(self, one):
        self.token = one.token
        self.wire = http.client.HTTPConnection(one.url.removeprefix("http://"), timeout=120)

    def ask(self, method, path, body=None):
        """One request: status, body, seconds."""
        begin = time.perf_counter()
        data = None if body is None else json.dumps(body)
        self.wire.request(method, path, data, {"Authorization": f"Bearer {self.token}"})
        answer = self.wire.getresponse()
        said = answer.read()
        return answer.status, said, time.perf_counter() - begin


def spread(seconds):
    """Milliseconds: median, 99th percentile, longest."""
    ordered = sorted(seconds)
    at = min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))
    return {"p50_ms": round(statistics.median(ordered) * 1e3, 2), "p99_ms": round(ordered[at] * 1e3, 2),
            "longest_ms": round(ordered[-1] * 1e3, 2), "count": len(ordered)}


def wanted(client, method, path, body, status):
    """Seconds of a request that must have this status."""
    got, said, took = client.ask(method, path, body)
    if got != status:
        raise Failed(f"{method} {path}: {got} {said[:500]}")
    return took


def measure(args):
    """All figures of the API."""
    rounds = 50 if args.quick else 300
    figures = {}
    with api() as one:
        client = Client(one)
        figures["a request that reaches no guest"] = spread(
            [wanted(client, "GET", "/v1/organization", None, 200) for _ in range(rounds)])
        figures["create, the server's and the store's part"] = spread(
            [wanted(client, "PUT", f"/v1/sprites/made{n}", {}, 201) for n in range(20)])
        begin = wanted(client, "POST", "/v1/sprites/made0/exec", {"command": "true"}, 200)
        figures["the first command, with the guest's boot"] = {"ms": round(begin * 1e3)}
        figures["exec of true"] = spread(
            [wanted(client, "POST", "/v1/sprites/made0/exec", {"command": "true"}, 200) for _ in range(rounds)])
        figures["checkpoint of a quiet guest"] = spread(
            [wanted(client, "POST", "/v1/sprites/made0/checkpoint", {}, 200) for _ in range(rounds // 5)])
        figures["a file of 4 bytes out of a checkpoint"] = spread(
            [wanted(client, "GET", "/v1/sprites/made0/checkpoints/v1/fs/read?path=/etc/hostname", None, 200)
             for _ in range(rounds // 5)])
        figures["restore, with the guest's boot"] = spread(
            [wanted(client, "POST", "/v1/sprites/made0/checkpoints/v1/restore", None, 200) for _ in range(3)])
        # A shell in the guest says how long the command takes there, without anything of ours.
        loop = "i=0; s=$(cut -d' ' -f1 /proc/uptime); while [ $i -lt 100 ]; do sh -c true; i=$((i+1)); done; echo $s $(cut -d' ' -f1 /proc/uptime)"
        said = json.loads(client.ask("POST", "/v1/sprites/made0/exec", {"command": loop})[1])["stdout"].split()
        figures["sh -c true, begun in the guest by its own shell"] = {"ms": round((float(said[1]) - float(said[0])) * 10, 2)}
        for n in range(20):
            wanted(client, "DELETE", f"/v1/sprites/made{n}", None, 204)
    return figures
