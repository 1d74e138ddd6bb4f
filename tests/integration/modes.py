#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ways down that leave a unit up: a snapshot, after which it goes on."""
import json

import harness
from counter_watch import CounterWatch
from harness import case, check, check_equal, check_in, wait_for

STORE = "/var/lib/checkpointd"

SIZE = 300  # of the file with its state, filled up with spaces

# Beats, and writes down what it knows of itself: a name drawn at its start, a checksum of its memory, and
# the longest time between two beats since the file "mark" was last touched. The file "state" stays open and
# keeps its name and size: what a snapshot finds open must still be there when the program has gone on.
BEAT = '''import json, os, socket, sys, time, zlib
folder = sys.argv[1]
name, memory, n, gap, mark = os.urandom(8).hex(), os.urandom(1 << 20) * 48, 0, 0, None
log = open(folder + "/log", "a", buffering=1)
state = os.open(folder + "/state", os.O_WRONLY | os.O_CREAT, 0o644)
def notify(text):
    if "NOTIFY_SOCKET" in os.environ:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
            peer.sendto(text, os.environ["NOTIFY_SOCKET"])
notify(b"READY=1\\nSTATUS=Beating")
last = time.monotonic_ns()
while True:
    n += 1
    now = time.monotonic_ns()
    gap, last = max(gap, now - last), now
    if (touched := os.path.exists(folder + "/mark")) != mark:
        gap, mark = 0, touched
    if n % 50 == 0:
        notify(b"WATCHDOG=1")
        log.write(f"{n}\\n")
    os.pwrite(state, json.dumps({"name": name, "n": n, "gap": gap, "pid": os.getpid(),
                                 "memory": zlib.crc32(memory[:4096]),
                                 "whole": memory[:1 << 20] == memory[-(1 << 20):]}).ljust(SIZE).encode(), 0)
    time.sleep(0.01)
'''.replace("SIZE", str(SIZE))


class Beat:
    """A unit that runs the program above."""

    def __init__(self, host, name, settings, folder, outside=None):
        self.host, self.unit, self.folder = host, f"modes-{name}.service", outside or folder
        host.write("/opt/modes/beat.py", BEAT)
        host.write(f"/etc/systemd/system/{self.unit}",
                   f"[Service]\nExecStart=/usr/bin/python3 /opt/modes/beat.py {folder}\n{settings}\n")
        host.run("systemctl", "daemon-reload")

    def start(self):
        self.host.run("systemctl", "start", self.unit)
        self.wait_for_a_beat()
        self.moves("started")

    def wait_for_a_beat(self):
        wait_for(lambda: self.host.exists(f"{self.folder}/state") and self.host.read(f"{self.folder}/state").strip(),
                 f"{self.unit} beats", 30)

    def forget(self):
        """What was last written is no longer there to be read."""
        self.host.run("dd", f"of={self.folder}/state", "conv=notrunc", input=" " * SIZE)

    def state(self):
        return json.loads(self.host.read(f"{self.folder}/state"))

    def moves(self, when, seconds=15):
        """It beats now; returns its state."""
        before = self.state()["n"]
        wait_for(lambda: self.state()["n"] != before, f"{when}: {self.unit} beats", seconds)
        now = self.state()
        check(now["whole"], f"{when}: its memory", now)
        return now

    def shown(self):
        return self.host.unit(self.unit, "ActiveState", "SubState", "Result", "MainPID", "InvocationID", "NRestarts",
                              "DropInPaths", "NeedDaemonReload", "StatusText", "ActiveEnterTimestampMonotonic")

    def images(self):
        listed = self.host.run("crctl", "--json", "list", self.unit).json()
        return {image["Id"].split("/")[1]: image["State"] for image in listed}


def crctl(host, *words, code=0):
    done = host.run("crctl", "--json", *words, check=False)
    check_equal(done.code, code, f"crctl {' '.join(words)}: {done.err}")
    return done.json() if code == 0 else done


def snapshot_and_back(host, beat):
    """A snapshot, then a stop, then back to the moment of the snapshot."""
    beat.start()
    before, shown = beat.moves("before a snapshot"), beat.shown()
    host.run("touch", f"{beat.folder}/mark")
    job = crctl(host, "checkpoint", beat.unit, "--mode", "snapshot")
    after = beat.moves("after a snapshot")
    print(f"        {beat.unit}: {job['Bytes'] >> 20} MiB, stood still for {job['FrozenUsec'] / 1000:.1f} ms by the "
          f"job, {after['gap'] / 1e6:.1f} ms between two beats", flush=True)
    check_equal((after["name"], after["pid"]), (before["name"], before["pid"]), "it is the same process")
    check_equal(beat.shown(), shown, "what systemd says of the unit, which heard nothing of it")
    check_equal(list(beat.images().values()), ["ready"], "its images")
    refused = crctl(host, "restore", beat.unit, code=4)
    check_in("is active", refused.err, "a restore beside the original")
    check_in("stop it first", refused.err, "the remedy")
    beat.moves("after the refusal")
    wait_for(lambda: beat.state()["n"] > after["n"] + 300, "it goes far beyond the snapshot", 60)
    host.run("systemctl", "stop", beat.unit)
    return before, after


def check_back(beat, before, after, when):
    now = beat.moves(when)
    check_equal((now["name"], now["pid"], now["memory"]), (before["name"], before["pid"], before["memory"]),
                f"{when}: process and memory")
    return now


@case
def snapshot_of_a_plain_service(t):
    host = t.host()
    beat = Beat(host, "plain", "StateDirectory=modes-plain\nRestart=always", "/var/lib/modes-plain")
    before, after = snapshot_and_back(host, beat)
    last = beat.state()["n"]
    beat.forget()
    crctl(host, "restore", beat.unit)
    beat.wait_for_a_beat()
    first = beat.state()["n"]
    check(before["n"] <= first < last, f"it goes on from the snapshot, from {before['n']} on, not {last}", first)
    check_back(beat, before, after, "restored from a snapshot")
    check_equal(list(beat.images().values()), ["consumed"], "its images")
    numbers = [int(line) for line in host.read(f"{beat.folder}/log").splitlines()]
    check(sorted(numbers) != numbers, "its log has both futures: that of before the stop, and this one", numbers)
    host.run("systemctl", "stop", beat.unit)


@case
def snapshot_of_a_watched_and_of_a_strict_service(t):
    host = t.host()
    watched = Beat(host, "watched", "Type=notify\nWatchdogSec=2\nStateDirectory=modes-watched\nRestart=always",
                   "/var/lib/modes-watched")
    strict = Beat(host, "strict", "DynamicUser=yes\nPrivateTmp=yes\nRuntimeDirectory=modes-strict\n"
                  "ProtectSystem=strict\nProtectHome=yes\nNoNewPrivileges=yes\nSystemCallFilter=@system-service",
                  "/run/modes-strict")
    for beat in (watched, strict):
        before, after = snapshot_and_back(host, beat)
        crctl(host, "restore", beat.unit)
        beat.wait_for_a_beat()
        now = check_back(beat, before, after, "restored from a snapshot")
        check(now["n"] < after["n"] + 200, "it goes on from the snapshot", (before, now))
        host.run("systemctl", "stop", beat.unit)


@case
def snapshot_of_the_counter(t):
    host, counter = t.host(), CounterWatch(t.host())
    counter.start()
    before = counter.state()
    for _ in range(3):
        crctl(host, "checkpoint", "counter.service", "--mode", "snapshot")
        counter.check_continues(before, "after a snapshot")
    images = host.run("crctl", "--json", "list", "counter.service").json()
    check_equal([image["State"] for image in images], ["ready"], "the policy keeps one of three snapshots")
    host.run("systemctl", "stop", "counter.service")


@case
def snapshot_of_redis(t):
    host = t.host()
    unit = "redis-server.service"
    host.drop_in(unit, "[Service]\nPrivateUsers=no\n")
    host.run("systemctl", "start", unit)
    redis = lambda *words: host.run("redis-cli", "-e", *words).out.strip()
    redis("config", "set", "save", "")
    redis("eval", "for i = 1, 20000 do redis.call('set', 'key:' .. i, 'value ' .. i) end", "0")
    pid = host.main_pid(unit)
    job = crctl(host, "checkpoint", unit, "--mode", "snapshot")
    print(f"        redis: {job['Bytes'] >> 20} MiB, stood still for {job['FrozenUsec'] / 1000:.1f} ms", flush=True)
    redis("set", "later", "x")
    check_equal(redis("dbsize"), "20001", "keys after the snapshot")
    check_equal(host.main_pid(unit), pid, "its main process")
    host.run("systemctl", "stop", unit)
    crctl(host, "restore", unit)
    check_equal((redis("dbsize"), redis("exists", "later")), ("20000", "0"), "keys of the moment of the snapshot")
    check_equal(host.main_pid(unit), pid, "its main process after the restore")
    host.run("systemctl", "stop", unit)


@case
def modes_that_do_not_exist(t):
    refused = crctl(t.host(), "checkpoint", "counter.service", "--mode", "hibernate", code=6)
    check_in('there is no mode "hibernate"', refused.err, "what it says")


harness.main()
