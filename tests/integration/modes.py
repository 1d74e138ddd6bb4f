#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ways down that leave a unit up: a snapshot, after which it goes on, and a suspension in place."""
import concurrent.futures
import json

import harness
from counter_watch import CounterWatch
from harness import case, check, check_equal, check_in, wait_for

STORE = "/var/lib/checkpointd"

SIZE = 300  # of the file with its state, filled up with spaces

AGAIN = "/opt/modes/again"  # made just before a restore

# Beats, and writes down what it knows of itself: a name drawn at its start, a checksum of its memory, the
# longest time between two beats since the file "mark" was last touched, and with which beat it goes on after
# a restore. The file "state" stays open and keeps its name and size: what a snapshot finds open must still be
# there when the program has gone on.
BEAT = '''import json, os, socket, sys, time, zlib
folder = sys.argv[1]
name, memory, n, gap, mark, again = os.urandom(8).hex(), os.urandom(1 << 20) * 48, 0, 0, None, None
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
    if again is None and os.path.exists("AGAIN"):
        again = n
    if n % 10 == 0:
        notify(b"WATCHDOG=1")
        log.write(f"{n}\\n")
    os.pwrite(state, json.dumps({"name": name, "n": n, "gap": gap, "again": again, "pid": os.getpid(),
                                 "memory": zlib.crc32(memory[:4096]),
                                 "whole": memory[:1 << 20] == memory[-(1 << 20):]}).ljust(SIZE).encode(), 0)
    time.sleep(0.01)
'''.replace("SIZE", str(SIZE)).replace("AGAIN", AGAIN)


class Beat:
    """A unit that runs the program above."""

    def __init__(self, host, name, settings, folder, outside=None):
        self.host, self.unit, self.folder = host, f"modes-{name}.service", outside or folder
        host.write("/opt/modes/beat.py", BEAT)
        host.write(f"/etc/systemd/system/{self.unit}",
                   f"[Service]\nExecStart=/usr/bin/python3 /opt/modes/beat.py {folder}\n{settings}\n")
        host.run("systemctl", "daemon-reload")

    def start(self):
        self.host.sh(f"rm -f {AGAIN}; systemctl start {self.unit}")
        self.wait_for_a_beat()
        self.moves("started")

    def wait_for_a_beat(self):
        wait_for(lambda: self.host.exists(f"{self.folder}/state") and self.host.read(f"{self.folder}/state").strip(),
                 f"{self.unit} beats")

    def restore(self):
        self.host.run("touch", AGAIN)
        crctl(self.host, "restore", self.unit)

    def state(self):
        return json.loads(self.host.read(f"{self.folder}/state"))

    def moves(self, when):
        """It beats now; returns its state."""
        before = self.state()["n"]
        wait_for(lambda: self.state()["n"] != before, f"{when}: {self.unit} beats")
        now = self.state()
        check(now["whole"], f"{when}: its memory", now)
        return now

    def shown(self):
        shown = self.host.unit(self.unit, "ActiveState", "SubState", "Result", "MainPID", "InvocationID", "NRestarts",
                               "DropInPaths", "NeedDaemonReload", "StatusText", "ActiveEnterTimestampMonotonic")
        return shown | {"DropInPaths": harness.without_gate(shown["DropInPaths"])}

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
    """It goes on from a moment between the two, which are what it said just before and after it."""
    wait_for(lambda: beat.state().get("again") is not None, f"{when}: it beats again")
    now = beat.moves(when)
    check_equal((now["name"], now["pid"], now["memory"]), (before["name"], before["pid"], before["memory"]),
                f"{when}: process and memory")
    # It may have stood between a beat and writing it down.
    check(before["n"] <= now["again"] <= after["n"] + 2, f"{when}: it goes on from there", (before, now, after))
    return now


@case
def snapshot_of_a_plain_service(t):
    host = t.host()
    beat = Beat(host, "plain", "StateDirectory=modes-plain\nRestart=always", "/var/lib/modes-plain")
    before, after = snapshot_and_back(host, beat)
    beat.restore()
    check_back(beat, before, after, "restored from a snapshot")
    check_equal(list(beat.images().values()), ["consumed"], "its images")
    log = lambda: [int(line) for line in host.read(f"{beat.folder}/log").splitlines()]
    wait_for(lambda: sorted(log()) != log(), "its log has both futures: that of before the stop, and this one")
    host.run("systemctl", "stop", beat.unit)


@case
def snapshot_of_a_watched_and_of_a_strict_service(t):
    host = t.host()
    watched = Beat(host, "watched", "Type=notify\nWatchdogSec=10\nStateDirectory=modes-watched\nRestart=always",
                   "/var/lib/modes-watched")
    strict = Beat(host, "strict", "DynamicUser=yes\nPrivateTmp=yes\nRuntimeDirectory=modes-strict\n"
                  "ProtectSystem=strict\nProtectHome=yes\nNoNewPrivileges=yes\nSystemCallFilter=@system-service",
                  "/run/modes-strict")
    for beat in (watched, strict):
        before, after = snapshot_and_back(host, beat)
        beat.restore()
        check_back(beat, before, after, "restored from a snapshot")
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


def memory_of(host, unit):
    """KiB of all processes of a unit, and how many they are."""
    group = host.unit(unit, "ControlGroup")["ControlGroup"]
    out = host.sh(f"for pid in $(cat /sys/fs/cgroup{group}/cgroup.procs); do "
                  "sed -n 's/^RssAnon:\\s*\\([0-9]*\\).*/\\1/p' /proc/$pid/status; done").out
    sizes = [int(size) for size in out.split()]
    return sum(sizes), len(sizes)


def suspend(host, beat):
    """Takes a unit that beats down in place, and looks at what is left of it."""
    before, shown, (memory, _) = beat.moves("before a suspension"), beat.shown(), memory_of(host, beat.unit)
    job = crctl(host, "checkpoint", beat.unit, "--mode", "suspend")
    check_suspended(host, beat, before, shown)
    left, processes = memory_of(host, beat.unit)
    print(f"        {beat.unit}: {job['Bytes'] >> 20} MiB on disk, {memory} KiB of memory before, {left} KiB now",
          flush=True)
    check(memory > 40_000 and left < 200 and processes == 1, "its memory is free", (memory, left, processes))
    return before, shown


def check_suspended(host, beat, before, shown):
    now = beat.shown()
    check_equal((now["ActiveState"], now["SubState"], now["Result"], now["NRestarts"]),
                ("active", "running", "success", shown["NRestarts"]), "a suspended unit")
    for key in ("InvocationID", "DropInPaths", "NeedDaemonReload", "ActiveEnterTimestampMonotonic"):
        check_equal(now[key], shown[key], f"{key} of a suspended unit")
    check_equal(now["StatusText"], "Suspended by checkpointd", "what it says of itself")
    check(now["MainPID"] not in ("0", shown["MainPID"]), "a placeholder is its main process", now)
    check_equal(host.read(f"/proc/{now['MainPID']}/comm"), "suspended\n", "the placeholder's name")
    check_equal(host.run("python3", "-c", harness.TAKE, shown["MainPID"]).out, "File exists\n", "its PID is taken by nobody")
    check_in(before["n"], range(beat.state()["n"] + 1), "it stands still since")
    check_equal(list(beat.images().values())[:1], ["ready"], "its image")
    return now


def check_resumed(host, beat, before, shown, stood):
    """It goes on from where it stood, and systemd has it as it was."""
    now = check_back(beat, before | {"n": stood["n"] + 1}, stood, "resumed")
    check_equal(beat.shown(), shown, "what systemd says of it: as before it was suspended")
    check_equal(list(beat.images().values()), ["consumed"], "its images")
    return now


def crash(host, beat):
    """systemd still notices how it ends."""
    host.run("kill", "-SEGV", str(host.main_pid(beat.unit)))
    wait_for(lambda: beat.shown()["NRestarts"] == "1" and beat.shown()["ActiveState"] == "active",
             "its crash is noticed, and it is started anew")
    host.run("systemctl", "stop", beat.unit)


@case
def suspend_and_resume_a_plain_service(t):
    """NotifyAccess=none: PID 1 is made to listen, and is as before afterwards."""
    host = t.host()
    beat = Beat(host, "plain", "StateDirectory=modes-plain\nRestart=always\nRestartSec=100ms", "/var/lib/modes-plain")
    dependants = {"requires": "Requires", "binds": "BindsTo", "part": "PartOf"}
    for name, relation in dependants.items():
        host.write(f"/etc/systemd/system/modes-{name}.service",
                   f"[Unit]\n{relation}={beat.unit}\nAfter={beat.unit}\n[Service]\nExecStart=/bin/sleep infinity\n")
    beat.start()
    host.run("systemctl", "start", *(f"modes-{name}.service" for name in dependants))
    mains = {name: host.main_pid(f"modes-{name}.service") for name in dependants}
    before, shown = suspend(host, beat)
    host.run("systemctl", "stop", "checkpointd.service")  # nothing of it is needed meanwhile
    host.sh(f"systemctl kill -s HUP {beat.unit}; systemctl kill -s USR1 {beat.unit}; sleep 0.2")
    check_suspended(host, beat, before, shown)
    refused = crctl(host, "checkpoint", beat.unit, code=4)
    check_in("it is suspended, on image", refused.err, "a checkpoint of a suspended unit")
    stood = beat.state()
    beat.restore()
    check_resumed(host, beat, before, shown, stood)
    check_equal({name: host.main_pid(f"modes-{name}.service") for name in dependants}, mains, "units that need it")
    crash(host, beat)


@case
def suspend_and_resume_a_watched_service(t):
    host = t.host()
    beat = Beat(host, "watched", "Type=notify\nWatchdogSec=8\nStateDirectory=modes-watched\nRestart=always\n"
                "RestartSec=100ms", "/var/lib/modes-watched")
    beat.start()
    before, shown = suspend(host, beat)
    stood = beat.state()
    host.run("sleep", "17")  # more than twice the watchdog's time
    check_suspended(host, beat, before, shown)
    beat.restore()
    check_resumed(host, beat, before, shown, stood)
    host.run("sleep", "9")
    check_equal(beat.shown()["NRestarts"], "0", "its own watchdog messages count again")
    crash(host, beat)


@case
def suspend_and_resume_a_strict_service(t):
    host = t.host()
    beat = Beat(host, "strict", "DynamicUser=yes\nPrivateTmp=yes\nRuntimeDirectory=modes-strict\n"
                "ProtectSystem=strict\nProtectHome=yes\nPrivateDevices=yes\nNoNewPrivileges=yes\n"
                "SystemCallFilter=@system-service\nCapabilityBoundingSet=\nRestart=always\nRestartSec=100ms",
                "/run/modes-strict")
    beat.start()
    host.sh(f"echo kept >/proc/{host.main_pid(beat.unit)}/root/tmp/file")
    before, shown = suspend(host, beat)
    placeholder = host.main_pid(beat.unit)
    status = host.sh(f"grep -E '^(Uid|CapEff|NoNewPrivs):' /proc/{placeholder}/status").out.split()
    check(status[1] != "0" and status[6] == "0000010000000000" and status[8] == "1",
          "the placeholder has the unit's user and one capability", status)
    check_equal(host.read(f"/proc/{placeholder}/root/tmp/file"), "kept\n", "its /tmp, by the placeholder's namespace")
    stood = beat.state()
    beat.restore()
    check_resumed(host, beat, before, shown, stood)
    check_equal(host.read(f"/proc/{host.main_pid(beat.unit)}/root/tmp/file"), "kept\n", "its /tmp")
    host.run("systemctl", "stop", beat.unit)


@case
def a_suspended_oneshot_goes_on_with_its_next_line(t):
    """PID 1 never learns of another line than the one that it runs, so this is carried in place, and only there."""
    host, unit = t.host(), "modes-lines.service"
    host.write(f"/etc/systemd/system/{unit}", "[Service]\nType=oneshot\nRemainAfterExit=yes\n"
               "ExecStart=/bin/sh -c 'while test ! -e /run/modes-go; do sleep 0.05; done'\n"
               "ExecStart=/bin/sh -c 'echo $SERVICE_RESULT >/run/modes-next'\n")
    host.sh(f"rm -f /run/modes-go /run/modes-next; systemctl daemon-reload; systemctl start --no-block {unit}")
    pid = wait_for(lambda: host.main_pid(unit), "its first line runs")
    refused = crctl(host, "checkpoint", unit, code=6)
    check_in("it is in line 1 of 2 of its ExecStart=", refused.err, "a stop")
    crctl(host, "checkpoint", unit, "--mode", "suspend")
    host.run("systemctl", "daemon-reload")
    crctl(host, "restore", unit)
    check_equal(host.main_pid(unit), pid, "it goes on in its first line")
    host.sh("systemctl daemon-reload; touch /run/modes-go")
    wait_for(lambda: host.exists("/run/modes-next"), "its next line runs")
    wait_for(lambda: host.unit(unit)["SubState"] == "exited", "all its lines were run")
    host.sh(f"systemctl stop {unit}; rm /run/modes-go; systemctl start --no-block {unit}")
    wait_for(lambda: host.main_pid(unit), "its first line runs")
    image = crctl(host, "checkpoint", unit, "--mode", "suspend")["Image"]
    host.run("systemctl", "stop", unit)
    refused = crctl(host, "restore", image, code=6)
    check_in("was to go on in the suspended unit, which was stopped since", refused.err, "a restore after a stop")
    check_equal(host.unit(unit)["ActiveState"], "inactive", "the unit whose restore was refused")


@case
def suspended_units_can_be_stopped(t):
    """The image stays ready, as the only copy; and the unit comes back from it as from any other."""
    host = t.host()
    for signal in ("SIGTERM", "SIGUSR2"):
        beat = Beat(host, "plain", f"StateDirectory=modes-plain\nKillSignal={signal}\nRestart=always",
                    "/var/lib/modes-plain")
        beat.start()
        before, shown = suspend(host, beat)
        stood, began = beat.state(), host.sh("cut -d' ' -f1 /proc/uptime").out
        host.run("systemctl", "stop", beat.unit)
        now = beat.shown()
        check_equal((now["ActiveState"], now["Result"]), ("inactive", "success"), f"stopped by {signal}")
        check(float(host.sh("cut -d' ' -f1 /proc/uptime").out) - float(began) < 60, "it ended at once, not by the time of its stop")
        wait_for(lambda pid=shown["MainPID"]: not host.exists(f"/proc/{pid}"), "its numbers are free")
        check_equal(list(beat.images().values()), ["ready"], "its images")
        beat.restore()
        check_back(beat, before, stood, "restored after it was suspended and stopped")
        host.run("systemctl", "stop", beat.unit)


GREET = """import socket
door, n = socket.socket(fileno=3), 0
while True:
    guest, _ = door.accept()
    n += 1
    guest.send(b"%d" % n)
    guest.close()
"""
KNOCK = """import socket
guest = socket.create_connection(("127.0.0.1", 7010), 60)
open("/run/modes-knocked", "w").close()
guest.settimeout(100)
print(guest.recv(9).decode())"""


@case
def suspend_a_socket_activated_service(t):
    """Who connects meanwhile waits in the queue of the listening socket, and is answered after the resumption."""
    host, unit = t.host(), "modes-greet.service"
    host.write("/opt/modes/greet.py", GREET)
    host.write("/opt/modes/knock.py", KNOCK)
    host.write(f"/etc/systemd/system/{unit}", "[Service]\nExecStart=/usr/bin/python3 /opt/modes/greet.py\n")
    host.write("/etc/systemd/system/modes-greet.socket", "[Socket]\nListenStream=127.0.0.1:7010\n")
    host.sh("systemctl daemon-reload; systemctl start modes-greet.socket")
    knock = lambda: host.run("python3", "/opt/modes/knock.py").out
    check_equal((knock(), knock()), ("1\n", "2\n"), "guests")
    shown = host.unit(unit, "MainPID", "InvocationID")
    crctl(host, "checkpoint", unit, "--mode", "suspend")
    host.run("rm", "/run/modes-knocked")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(knock)
        wait_for(lambda: host.exists("/run/modes-knocked"), "a guest is connected")
        crctl(host, "restore", unit)
        check_equal(waiting.result(), "3\n", "the guest who came meanwhile")
    check_equal(host.unit(unit, "MainPID", "InvocationID"), shown, "the unit as it was")
    host.run("systemctl", "stop", unit, "modes-greet.socket")


@case
def suspend_redis(t):
    host, unit = t.host(), "redis-server.service"
    host.run("systemctl", "start", unit)
    redis = lambda *words: host.run("redis-cli", "-e", *words).out.strip()
    redis("config", "set", "save", "")
    redis("eval", "for i = 1, 20000 do redis.call('set', 'key:' .. i, 'value ' .. i) end", "0")
    shown = host.unit(unit, "MainPID", "InvocationID", "NRestarts", "StatusText", "ActiveState")
    threads = host.run("ls", f"/proc/{shown['MainPID']}/task").out.split()
    crctl(host, "checkpoint", unit, "--mode", "suspend")
    check(len(threads) > 1, "redis has threads", threads)
    for tid in threads:
        check_equal(host.run("python3", "-c", harness.TAKE, tid).out, "File exists\n", f"thread {tid}: its number")
    check_equal(host.unit(unit, "InvocationID", "ActiveState"),
                {"InvocationID": shown["InvocationID"], "ActiveState": "active"}, "redis while suspended")
    crctl(host, "restore", unit)
    check_equal(redis("dbsize"), "20000", "keys")
    check_equal(host.unit(unit, *shown), shown, "what systemd says of it")
    host.run("systemctl", "stop", unit)


@case
def modes_that_do_not_exist(t):
    refused = crctl(t.host(), "checkpoint", "counter.service", "--mode", "hibernate", code=6)
    check_in('there is no mode "hibernate"', refused.err, "what it says")


harness.main()
