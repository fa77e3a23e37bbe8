"""What a person reads: the demo's table of steps, and the lines of a test's checks."""

import os
import sys
import time
from contextlib import contextmanager

from .processes import Failed, unwind_when_told_to_stop

WIDTH = 86


class Steps:
    """A table that grows while the work goes on: number, what happened, time."""

    def __init__(self):
        self.number = 0
        self.started = time.monotonic()

    def head(self):
        """The table's head."""
        print(f"{'step':>4}  {'what happened':{WIDTH}}  {'time':>8}")
        print(f"{'----':>4}  {'-' * WIDTH}  {'-' * 8}", flush=True)

    @contextmanager
    def step(self, doing):
        """One step: shows `doing` on a terminal, then what the step says it did, and how long it took."""
        self.number += 1
        said = []
        begin = time.monotonic()
        live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        if live:
            print(f"{self.number:>4}  {doing + ' ...':{WIDTH}}", end="\r", flush=True)
        try:
            yield said.append
        except BaseException:
            print(f"{self.number:>4}  {'FAILED while ' + doing:{WIDTH}}  {time.monotonic() - begin:6.1f} s", flush=True)
            raise
        took = time.monotonic() - begin
        first, *more = said or [doing]
        print(f"{self.number:>4}  {first:{WIDTH}}  {took:6.1f} s", flush=True)
        for line in more:
            print(f"      {line}", flush=True)


class Checks:
    """One line for each check; the script goes on after a failed one, and fails at its end."""

    def __init__(self):
        self.passed = self.failed = 0

    def that(self, what, function):
        """Runs `function`; it fails by raising, or by returning something false."""
        try:
            held = function()
            why = "does not hold"
        except (Failed, AssertionError) as error:
            held, why = False, str(error)
        except Exception as error:  # what a client's library raises is as good a failure as any
            held, why = False, f"{type(error).__name__}: {error}"
        if held is False:
            self.failed += 1
            print(f"  FAIL  {what}", flush=True)
            print("\n".join(f"        {line}" for line in why.splitlines()), flush=True)
        else:
            self.passed += 1
            print(f"  ok    {what}", flush=True)


def main(work):
    """Runs one interoperability script: `work` is given the checks to fill."""
    unwind_when_told_to_stop()
    checks = Checks()
    try:
        work(checks)
    except Failed as error:
        checks.failed += 1
        print(f"  FAIL  {error}", flush=True)
    print(f"{os.path.basename(sys.argv[0])}: {checks.passed} passed, {checks.failed} failed", flush=True)
    sys.exit(1 if checks.failed or not checks.passed else 0)


def same(got, wanted):
    """Fails with both values unless they are equal."""
    if got != wanted:
        raise Failed(f"got    {got!r}\nwanted {wanted!r}")
    return True
