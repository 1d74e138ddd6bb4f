# SPDX-License-Identifier: LGPL-2.1-or-later
"""What integration tests are made of: test hosts, checks that print what was seen, a runner.

A suite is a program:

    import harness
    from harness import case, check, check_equal

    @case
    def something_works(t):                # cases run in the order they are written
        host = t.host("a")                 # booted on first use, shared by the cases of the suite
        check_equal(host.run("echo", "hi").out, "hi\n", "what echo said")

    harness.main()

`t.host(NAME)` boots `./dev testhost up SUITE-NAME-CHECKOUT`; every host goes down when the suite ends, also when
it is killed (up --owner). `raise harness.Skip("why")` skips a case. CHECKPOINTD_SOAK=1 in the environment
(`./dev soak`) asks for the long version: `harness.SOAK`; CHECKPOINTD_TEST_SUITE=trixie boots the hosts in a root
of Debian 13, and skips the cases, saying why, where its packages cannot be had.
"""
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
import traceback

TOP = pathlib.Path(__file__).resolve().parents[2]
DEV = str(TOP / "dev")
# Two checkouts on one machine may test at the same time; the names of their hosts differ by this.
CHECKOUT = hashlib.sha256(str(TOP).encode()).hexdigest()[:4]
SOAK = os.environ.get("CHECKPOINTD_SOAK") == "1"
# The Debian suite whose root test hosts boot in; empty: the machine's own root (tests/host/root.sh).
SUITE = os.environ.get("CHECKPOINTD_TEST_SUITE", "")


# Who has a number now, told by taking it: clone3(2) with set_tid. A child that is born ends at once.
TAKE = """import ctypes, os, sys
number = ctypes.c_int(int(sys.argv[1]))
args = (ctypes.c_uint64 * 11)(*[0] * 4, 17, *[0] * 3, ctypes.addressof(number), 1, 0)
libc = ctypes.CDLL(None, use_errno=True)
pid = libc.syscall(435, ctypes.byref(args), ctypes.sizeof(args))
if pid == 0: os._exit(0)
print(os.strerror(ctypes.get_errno()) if pid < 0 else "taken")
if pid > 0: os.waitpid(pid, 0)
"""


class Failed(Exception):
    """A check that did not hold; its text says what was expected and what was seen."""


class Skip(Exception):
    """A case that cannot run here; its text says why."""


def check(holds, what, seen=None):
    if not holds:
        raise Failed(what if seen is None else f"{what}\n  seen: {seen!r}")


def check_equal(seen, expected, what):
    check(seen == expected, f"{what}: expected {expected!r}", seen)


def check_in(part, whole, what):
    check(part in whole, f"{what}: expected {part!r} in it", whole)


def wait_for(condition, what, seconds=60.0, interval=0.05):
    """Polls `condition` until it returns something true, which is returned. To look costs as much as what is waited
    for, and other suites want the processor too: the longer it takes, the more seldom it looks."""
    began = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited = time.monotonic() - began
        if waited > seconds:
            raise Failed(f"waited {seconds} s in vain: {what}\n  seen: {value!r}")
        time.sleep(max(interval, min(waited / 10, 0.25)))


def without_gate(drop_ins):
    """DropInPaths= without the gate's, which belongs to an image that is ready and not to a job."""
    return [path for path in drop_ins.split() if not path.endswith("/zz-checkpointd-gate.conf")]


@dataclasses.dataclass
class Outcome:
    """What a command did: exit code, both outputs, seconds it took."""
    command: str
    code: int
    out: str
    err: str
    seconds: float

    def json(self):
        try:
            return json.loads(self.out)
        except ValueError as error:
            raise Failed(f"{self.command}: its output is not JSON\n  seen: {self.out!r}") from error


def run_here(*command, check=True, input=None, timeout=120):
    """Runs a command on this machine; fails with all that it said unless it exits with 0."""
    began = time.monotonic()
    try:
        done = subprocess.run(command, input=input, capture_output=True, text=True, timeout=timeout,
                              stdin=subprocess.DEVNULL if input is None else None, check=False)
    except subprocess.TimeoutExpired as expired:
        raise Failed(f"{shlex.join(command)}: not done after {timeout} s\n"
                     f"  out: {expired.stdout!r}\n  err: {expired.stderr!r}") from expired
    outcome = Outcome(shlex.join(command), done.returncode, done.stdout, done.stderr,
                      time.monotonic() - began)
    if check and outcome.code != 0:
        raise Failed(f"{outcome.command}: exit code {outcome.code}\n  out: {outcome.out.rstrip()}\n"
                     f"  err: {outcome.err.rstrip()}")
    return outcome


class Host:
    """A test host. Commands run as root inside, in a clean environment."""

    def __init__(self, name, options=()):
        """`options`: more of `./dev testhost up`."""
        self.name, self.options = "-".join(filter(None, (name, SUITE, CHECKOUT))), options

    def up(self):
        done = run_here(DEV, "testhost", "up", self.name, "--no-build", "--owner", str(os.getpid()), *self.options,
                        *(["--suite", SUITE] if SUITE else []), check=not SUITE, timeout=600)
        if done.code == 77:
            raise Skip(done.err.strip().splitlines()[-1])
        check_equal(done.code, 0, f"{done.command} ({done.err.strip()})")
        return self

    def down(self):
        run_here(DEV, "testhost", "down", self.name)

    def reboot(self, crash=False):
        run_here(DEV, "testhost", "reboot", self.name, *(["--crash"] if crash else []), timeout=600)

    def command(self, *command):
        """What to run on this machine so that `command` runs inside."""
        return [DEV, "testhost", "exec", self.name, "--", *command]

    def run(self, *command, check=True, input=None, timeout=120):
        return run_here(*self.command(*command), check=check, input=input, timeout=timeout)

    def sh(self, script, check=True, timeout=120):
        return self.run("bash", "-euo", "pipefail", "-c", script, check=check, timeout=timeout)

    def read(self, path):
        return self.run("cat", path).out

    def write(self, path, text):
        self.run("sh", "-c", 'mkdir -p "${1%/*}" && cat >"$1"', "sh", path, input=text)

    def exists(self, path):
        return self.run("test", "-e", path, check=False).code == 0

    def unit(self, unit, *properties):
        """Properties of a unit as a dictionary; the usual ones when none are named."""
        names = properties or ("LoadState", "ActiveState", "SubState", "Result", "MainPID", "NRestarts",
                               "ControlGroup", "InvocationID", "FreezerState", "NeedDaemonReload")
        out = self.run("systemctl", "show", unit, "-p", ",".join(names)).out
        return dict(line.split("=", 1) for line in out.splitlines())

    def main_pid(self, unit):
        return int(self.unit(unit, "MainPID")["MainPID"])

    def journal(self, unit, *options):
        """The unit's log lines of this boot, oldest first, as dictionaries of journal fields."""
        out = self.run("journalctl", "-b", "-u", unit, "-o", "json", "--no-pager", *options).out
        return [json.loads(line) for line in out.splitlines()]

    def keeper_of(self, image):
        """The unit that keeps the PIDs of an image from others."""
        return self.run("systemd-escape", "--template=checkpointd-pids@.service", image).out.strip()

    @contextlib.contextmanager
    def taken(self, *pids):
        """A process of taker-PID.service has each of these PIDs, which nobody must keep. The numbers behind them go
        to nobody: what stays for long (checkpointd itself) could get one that is to be taken next."""
        last = "/proc/sys/kernel/ns_last_pid"
        try:
            for pid in pids:
                take = f"was=$(<{last}); for try in {{1..2000}}; do echo {pid - 1} >{last}; sleep 300 & taker=$!; " \
                       f"echo $was >{last}; [ $taker = {pid} ] && break; kill $taker; done; disown"
                self.run("systemd-run", "-u", f"taker-{pid}", "-p", "Type=forking", "bash", "-c", take)
                wait_for(lambda number=pid: self.run("cat", f"/proc/{number}/comm", check=False).out == "sleep\n",
                         f"PID {pid} is taken")
            yield
        finally:
            for pid in pids:
                self.run("systemctl", "stop", f"taker-{pid}.service", check=False)

    def wait_undone(self, when):
        """No journal of a job is left. Who undoes one may just be removing it when the job is known to have ended."""
        wait_for(lambda: not self.sh("ls -d /run/checkpointd/jobs/*/undo 2>/dev/null || true").out, f"{when}: all is undone")

    def drop_in(self, unit, text, name="test"):
        self.write(f"/etc/systemd/system/{unit}.d/{name}.conf", text)
        self.run("systemctl", "daemon-reload")


class Suite:
    """Handed to every case as `t`."""

    def __init__(self, name, host_options=()):
        self.name, self.host_options = name, host_options
        self.hosts = {}
        self.cleanups = []

    def host(self, name="a"):
        if name not in self.hosts:
            self.hosts[name] = Host(f"{self.name}-{name}", self.host_options)
            try:
                self.hosts[name].up()
            except Skip:
                del self.hosts[name]
                raise
        return self.hosts[name]

    def on_end(self, function):
        """Calls `function` when the suite ends, last one first."""
        self.cleanups.append(function)

    def end(self):
        for function in reversed(self.cleanups):
            function()
        for host in self.hosts.values():
            host.down()


_cases = []


def case(function):
    """Marks a function of the suite as a test case."""
    _cases.append(function)
    return function


def _interrupted(number, _frame):
    raise KeyboardInterrupt(signal.Signals(number).name)


def _run_case(function, suite):
    """Runs one case; returns passed, failed or skipped."""
    began = time.monotonic()
    try:
        function(suite)
        result, text = "passed", ""
    except Skip as skip:
        result, text = "skipped", f": {skip}"
    except Failed as failure:
        where = traceback.extract_tb(failure.__traceback__)
        lines = [frame.lineno for frame in where if frame.filename == sys.argv[0]]
        result, text = "failed", f", line {lines[-1] if lines else '?'}: {failure}"
    except Exception:  # a broken test is a failed test, and the next ones still run
        result, text = "failed", "\n" + traceback.format_exc()
    print(f"{result:7} {function.__name__} ({time.monotonic() - began:.2f} s){text}", flush=True)
    return result


def main():
    """Runs the cases, or those named on the command line; exits 0, 1 or 77 (all skipped)."""
    signal.signal(signal.SIGTERM, _interrupted)
    wanted = sys.argv[1:]
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    suite = Suite(pathlib.Path(sys.argv[0]).stem.replace("_", "-"))
    try:
        for function in _cases:
            if not wanted or function.__name__ in wanted:
                counts[_run_case(function, suite)] += 1
    finally:
        suite.end()
    print("{passed} passed, {failed} failed, {skipped} skipped".format(**counts), flush=True)
    sys.exit(1 if counts["failed"] or not any(counts.values()) else 0 if counts["passed"] else 77)
