#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Restore at the start of units: over reboots, by a plain start, by a client; and a cold start whenever it fails.

Each service carries a token that it made when it was started cold, and counts: the same token and a higher
number is a restored process, another token is a cold start.
"""
import dataclasses
import random
import time

import harness
from harness import SOAK, Failed, case, check, check_equal, check_in, wait_for

STEADY = """
import os, secrets, socket, sys, threading, time
token, n = secrets.token_hex(4), 0
def report():
    path = os.environ["STATE_DIRECTORY"] + "/state"
    with open(path + ".new", "w") as file:
        file.write(f"{token} {n}")
    os.rename(path + ".new", path)
def serve(door):
    while True:
        guest, _ = door.accept()
        guest.send(f"{token} {n}".encode())
        guest.close()
if "LISTEN_FDS" in os.environ:
    threading.Thread(target=serve, args=(socket.socket(fileno=3),), daemon=True).start()
elif len(sys.argv) > 1:
    threading.Thread(target=serve, args=(socket.create_server(("127.0.0.1", int(sys.argv[1]))),)).start()
if "NOTIFY_SOCKET" in os.environ:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
while True:
    n += 1
    report()
    time.sleep(0.05)
"""
KNOCK = "import socket, sys; print(socket.create_connection(('127.0.0.1', int(sys.argv[1])), 100).recv(99).decode())"
STRICT = """DynamicUser=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectSystem=strict
ProtectHome=yes
ProtectKernelTunables=yes
NoNewPrivileges=yes
MemoryDenyWriteExecute=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_INET
NoExecPaths=/
ExecPaths=/usr/bin/python3 /usr/lib /lib /lib64
SystemCallFilter=@system-service
"""
FAULTS = "/run/checkpointd/allow-faults"
STORE, GATE = "/var/lib/checkpointd", "zz-checkpointd-gate.conf"


@dataclasses.dataclass
class Kind:
    name: str
    service: str = ""    # lines of [Service]
    arguments: str = ""
    socket: str = ""     # lines of [Socket]
    folder: str = "/var/lib"

    @property
    def unit(self):
        return f"boot-{self.name}.service"

    def install(self, host):
        body = self.service if "ExecStart=" in self.service else \
            f"ExecStart=/usr/bin/python3 /opt/boot/steady.py {self.arguments}\n{self.service}"
        host.write(f"/etc/systemd/system/{self.unit}", f"[Service]\nStateDirectory=boot-{self.name}\n{body}\n"
                   "[Install]\nWantedBy=multi-user.target\n")
        if self.socket:
            host.write(f"/etc/systemd/system/boot-{self.name}.socket",
                       f"[Socket]\n{self.socket}\n[Install]\nWantedBy=sockets.target\n")

    @property
    def starter(self):
        """What is enabled in systemd: the service, or the socket that starts it."""
        return f"boot-{self.name}.socket" if self.socket else self.unit

    def knock(self, host):
        return host.run("python3", "-c", KNOCK, self.socket.rpartition(":")[2]).out.split()

    def state(self, host):
        """Its token and its number, from inside."""
        if self.socket:
            self.knock(host)
        token, number = host.read(f"{self.folder}/boot-{self.name}/state").split()
        return token, int(number)


class Redis(Kind):
    """A redis: its token is a key, its number is one, too; saving is off."""
    def __init__(self, name, unit, port, service=""):
        super().__init__(name, service)
        self.port, self.own_unit = port, unit

    @property
    def unit(self):
        return self.own_unit or f"boot-{self.name}.service"

    def install(self, host):
        if not self.own_unit:  # the others are used as packaged
            super().install(host)

    def state(self, host):
        script = (f'redis-cli -e -p {self.port} config set save "" >&2; '
                  f"redis-cli -e -p {self.port} info server | grep ^run_id | cut -d: -f2 | tr -d '\\r'; "
                  f"redis-cli -e -p {self.port} incr n")
        token, number = host.sh(script).out.split()
        return token, int(number)


SIX = [
    Redis("redis", "redis-server.service", 6379),
    Redis("forking", "", 7003, "Type=forking\nPIDFile=/run/boot-forking/pid\nRuntimeDirectory=boot-forking\n"
          "ExecStart=/usr/bin/redis-server --port 7003 --daemonize yes --pidfile /run/boot-forking/pid "
          "--save '' --dir /tmp\nPrivateTmp=yes"),
    Kind("activated", socket="ListenStream=127.0.0.1:7002"),
    Kind("strict", STRICT, folder="/var/lib/private"),
    Kind("network", "PrivateNetwork=yes\nPrivateIPC=yes\nType=notify", "7004"),
    Kind("damaged", "ExecStartPre=/bin/sh -c 'echo x >>/var/lib/boot-damaged/pre'"),
]


def install(host, kinds):
    host.write("/opt/boot/steady.py", STEADY)
    for kind in kinds:
        kind.install(host)
    host.run("systemctl", "daemon-reload")


def settled(host, kind):
    """What the unit says once it is up. It counts: what a process before it has written stands still."""
    def look():
        if not kind.socket and host.unit(kind.unit, "ActiveState")["ActiveState"] != "active":
            return None
        try:
            first = kind.state(host)
            time.sleep(0.1)
            now = kind.state(host)
        except (Failed, ValueError):
            return None
        return now if now[0] == first[0] and now[1] > first[1] else None
    return wait_for(look, f"{kind.unit} is up and answers", 120)


def check_same(host, kind, before, when):
    """It goes on from `before`, in this very process."""
    token, number = settled(host, kind)
    check_equal(token, before[0], f"{kind.unit}, {when}: not a cold start\n{why(host, kind)}")
    wait_for(lambda: kind.state(host)[1] > before[1], f"{kind.unit}, {when}: it counts on from {before[1]}")
    check_unit(host, kind, when)


def check_cold(host, kind, before, when):
    token, _ = settled(host, kind)
    check(token != before[0], f"{kind.unit}, {when}: a cold start", token)
    check_unit(host, kind, when)


def why(host, kind):
    lines = host.sh(f"journalctl -b --no-pager -o cat _SYSTEMD_UNIT={kind.unit} + SYSLOG_IDENTIFIER=checkpointd-worker"
                    f" + UNIT={kind.unit} | tail -n 30; crctl list").out
    return lines


def check_unit(host, kind, when):
    """PID 1 has it as its unit files say, and nothing of ours is left once the dust has settled."""
    shown = host.unit(kind.unit, "ActiveState", "SubState", "Result", "NRestarts", "Restart", "Type")
    check_equal((shown["ActiveState"], shown["SubState"], shown["Result"]), ("active", "running", "success"),
                f"{kind.unit}, {when}: the unit")
    ours = lambda: [path for path in host.unit(kind.unit, "DropInPaths")["DropInPaths"].split()
                    if path.endswith(("/zz-checkpointd.conf", GATE))]
    wait_for(lambda: not ours() or image_state(host, kind) == "ready", f"{kind.unit}, {when}: drop-ins of ours go")
    wait_for(lambda: not host.sh("ls /run/checkpointd/cold 2>/dev/null || true").out,
             f"{kind.unit}, {when}: no note of a cold start is left")


def images(host, kind):
    return [row for row in host.run("crctl", "--json", "list", kind.unit).json()]


def image_state(host, kind):
    """Of the newest one."""
    return images(host, kind)[0]["State"]


def reason(host, kind):
    return host.run("crctl", "--json", "show", images(host, kind)[0]["Id"]).json()["Reason"]


def checkpoint(host, kind):
    before = settled(host, kind)
    host.run("crctl", "checkpoint", kind.unit)
    return before


def start_fresh(host, kind):
    host.sh(f"systemctl stop {kind.unit}; crctl list --json {kind.unit} | "
            "python3 -c 'import json, sys; [print(i[\"Id\"]) for i in json.load(sys.stdin)]' | "
            f"xargs -r crctl rm --force; systemctl daemon-reload; systemctl start {kind.unit}")
    settled(host, kind)


def damage(host, kind):
    host.run("python3", "-c", "import glob, sys\npath = sorted(glob.glob(sys.argv[1]))[-1]\n"
             "file = open(path, 'r+b')\nfile.seek(100)\nbyte = file.read(1)[0]\nfile.seek(100)\n"
             "file.write(bytes([byte ^ 1]))", f"{STORE}/{kind.unit}/2*/pages-*.img")


@case
def six_units_survive_reboots(t):
    """Two of them, in a row; in ./dev soak five."""
    host = t.host()
    install(host, SIX)
    for kind in SIX:
        host.sh(f"systemctl enable --now {kind.starter} 2>&1")
        host.run("crctl", "enable", kind.unit)
    for turn in range(1, 6 if SOAK else 3):
        before = {kind.name: checkpoint(host, kind) for kind in SIX}
        damage(host, SIX[-1])
        host.reboot()
        for kind in SIX[:-1]:
            check_same(host, kind, before[kind.name], f"reboot {turn}")
            check_equal(image_state(host, kind), "consumed", f"{kind.unit}, reboot {turn}: its image")
        damaged = SIX[-1]
        check_cold(host, damaged, before["damaged"], f"reboot {turn}")
        check_equal(image_state(host, damaged), "stale", f"the damaged image after reboot {turn}")
        check_in("pages-", reason(host, damaged), "what is told of the damaged image")
        check_equal(len(host.read("/var/lib/boot-damaged/pre").split()), turn + 1, "runs of its ExecStartPre=")
        check_equal(host.run("systemctl", "is-system-running", "--wait").out, "running\n", f"the system, reboot {turn}")


# ---- one unit and another that needs it, within one boot

PLAIN = Kind("plain", "ExecStartPre=/bin/sh -c 'echo x >>/var/lib/boot-plain/pre'\nRestart=on-failure")


def plain(t, enabled=True):
    """The unit runs, without images; it is enabled or not."""
    host = t.host()
    install(host, [PLAIN])
    host.write("/etc/systemd/system/boot-needs.service",
               f"[Unit]\nRequires={PLAIN.unit}\nAfter={PLAIN.unit}\n[Service]\nExecStart=/bin/sleep infinity\n")
    host.sh(f"rm -f {FAULTS}; rm -rf /etc/checkpointd/policy.d /etc/systemd/system/{PLAIN.unit}.d; "
            "systemctl daemon-reload; crctl policy reload")
    start_fresh(host, PLAIN)
    host.run("crctl", "enable" if enabled else "disable", PLAIN.unit)
    return host


def start(host, unit=PLAIN.unit):
    host.run("systemctl", "start", unit)


@case
def a_start_of_an_enabled_unit_is_a_restore(t):
    host = plain(t)
    check_equal(host.run("crctl", "--json", "list", PLAIN.unit).json(), [], "images")
    check_in(f"{PLAIN.unit} is enabled and has no image", host.run("crctl", "list").out, "crctl list")
    before = checkpoint(host, PLAIN)
    check_equal(images(host, PLAIN)[0]["Enabled"], "enabled", "what crctl list says of it")
    check_in(GATE, host.unit(PLAIN.unit, "DropInPaths")["DropInPaths"], "drop-ins of a unit with an image")
    start(host)
    check_same(host, PLAIN, before, "started")
    host.run("systemctl", "restart", PLAIN.unit)
    check_cold(host, PLAIN, before, "started again, its image is consumed")


@case
def a_start_of_another_unit_is_cold_and_its_image_stale(t):
    host = plain(t, enabled=False)
    before = checkpoint(host, PLAIN)
    runs = len(host.read("/var/lib/boot-plain/pre").split())
    start(host)
    check_cold(host, PLAIN, before, "not enabled")
    check_equal(len(host.read("/var/lib/boot-plain/pre").split()), runs + 1, "runs of ExecStartPre=")
    check_equal(image_state(host, PLAIN), "stale", "its image")
    check_in("not enabled", reason(host, PLAIN), "the reason")
    outcome = host.run("crctl", "restore", PLAIN.unit, check=False)
    check_equal(outcome.code, 3, "a restore finds no image that is ready")


@case
def a_client_wakes_a_unit_from_its_image(t):
    host = t.host()
    kind = Kind("woken", socket="ListenStream=127.0.0.1:7012")
    install(host, [kind])
    host.run("systemctl", "start", kind.starter)
    before = checkpoint(host, kind)
    check_equal(host.unit(kind.unit, "ActiveState")["ActiveState"], "inactive", "nobody has come yet")
    token, number = kind.knock(host)
    check_equal(token, before[0], "the client is served by the restored process\n" + why(host, kind))
    check(int(number) >= before[1], "it counts on", (number, before))


@case
def without_a_daemon_it_starts_cold_at_once(t):
    host = plain(t)
    before = checkpoint(host, PLAIN)
    host.sh("systemctl mask --runtime checkpointd.service 2>&1; systemctl stop checkpointd.service")
    try:
        outcome = host.run("systemctl", "start", PLAIN.unit)
        check(outcome.seconds < 60, "nobody waits for a deadline", outcome.seconds)
        token, _ = settled(host, PLAIN)
        check(token != before[0], "a cold start")
    finally:
        host.sh("systemctl unmask --runtime checkpointd.service 2>&1")
    check_equal(image_state(host, PLAIN), "stale", "its image")
    check_in("checkpointd cannot be reached", reason(host, PLAIN), "the reason")


@case
def what_was_changed_starts_cold(t):
    host = plain(t)
    before = checkpoint(host, PLAIN)
    host.drop_in(PLAIN.unit, "[Service]\nNice=1\n")
    start(host)
    check_cold(host, PLAIN, before, "with a drop-in that is new")
    check_in("boot-plain.service.d/test.conf: is part of the unit since", reason(host, PLAIN), "the reason")
    host.sh("cp /usr/bin/sleep /opt/boot/sleeper; cp /usr/bin/sleep /opt/boot/sleeper.new")
    sleeper = Kind("sleeper", "ExecStart=/opt/boot/sleeper infinity")
    install(host, [sleeper])
    host.run("crctl", "enable", sleeper.unit)
    host.run("systemctl", "start", sleeper.unit)
    pid = host.main_pid(sleeper.unit)
    host.run("crctl", "checkpoint", sleeper.unit)
    host.run("mv", "/opt/boot/sleeper.new", "/opt/boot/sleeper")
    refused = host.run("crctl", "restore", sleeper.unit, check=False)
    check_equal(refused.code, 4, "a restore by hand of what was changed")
    check_in("/opt/boot/sleeper: the program or library was changed", refused.err, "what it says")
    host.run("systemctl", "start", sleeper.unit)
    check_equal(host.main_pid(sleeper.unit) == pid, False, "a process of its own")
    check_equal(image_state(host, sleeper), "stale", "its image")


@case
def a_warm_image_serves_every_start(t):
    host = plain(t, enabled=False)
    host.write("/etc/checkpointd/policy.d/warm.yaml",
               f"units: {{{PLAIN.unit}: {{reuse: always, restore-at-boot: yes}}}}\n")
    host.run("crctl", "policy", "reload")
    before = checkpoint(host, PLAIN)
    for turn in range(3):
        start(host)
        check_same(host, PLAIN, before, f"warm start {turn}")
        check_equal(image_state(host, PLAIN), "ready", f"the image after warm start {turn}")
        host.run("systemctl", "stop", PLAIN.unit)
    damage(host, PLAIN)
    start(host)
    check_cold(host, PLAIN, before, "with a warm image that is damaged")


@case
def a_suspended_unit_was_not_started_cold(t):
    """Its image counts whatever its unit files say by now; its next start is one like any other."""
    host = plain(t)
    before = settled(host, PLAIN)
    host.run("crctl", "checkpoint", "--mode", "suspend", PLAIN.unit)
    host.drop_in(PLAIN.unit, "[Service]\nNice=1\n")
    host.run("crctl", "restore", PLAIN.unit)
    check_same(host, PLAIN, before, "resumed, with a drop-in that is new")
    host.run("crctl", "checkpoint", "--mode", "suspend", PLAIN.unit)
    check_in(GATE, host.unit(PLAIN.unit, "DropInPaths")["DropInPaths"], "drop-ins of a unit that was suspended just now")
    host.run("systemctl", "restart", PLAIN.unit)
    check_same(host, PLAIN, before, "suspended, stopped and started")
    host.run("crctl", "disable", PLAIN.unit)
    host.run("crctl", "checkpoint", "--mode", "suspend", PLAIN.unit)
    host.run("systemctl", "restart", PLAIN.unit)
    check_cold(host, PLAIN, before, "suspended, not enabled, stopped and started")
    check_equal(image_state(host, PLAIN), "stale", "its image")


# ---- when the system goes down

DOWN = [
    Kind("down-base", "ExecStop=/bin/sh -c 'echo x >>/var/lib/boot-down-base/stopped'"),
    Kind("down-top", "Type=notify\nPrivateTmp=yes"),
    Kind("down-refused"),
    Kind("other"),
]


def on_disk(host, kind):
    return {image["Id"]: image["CreatedUsec"] for image in images(host, kind)}


@case
def units_go_to_disk_when_the_system_goes_down(t):
    host = t.host()
    install(host, DOWN)
    base, top, refused, other = DOWN
    host.drop_in(top.unit, f"[Unit]\nRequires={base.unit}\nAfter={base.unit}\n")
    host.drop_in(refused.unit, "[Unit]\nOnSuccess=boot-other.service\n")
    host.write("/etc/checkpointd/policy.d/down.yaml",
               'units: {"boot-down-*.service": {checkpoint-at-shutdown: yes, restore-at-boot: yes}}\n')
    for kind in DOWN:
        host.sh(f"systemctl enable --now {kind.unit} 2>&1")
    host.run("crctl", "policy", "reload")
    wait_for(lambda: host.unit("checkpointd-shutdown.service", "ActiveState")["ActiveState"] == "active",
             "the unit that is stopped first")
    check_in("checkpointd-shutdown.service", host.unit(base.unit, "Before")["Before"], "the order of a unit that asks")
    before = {kind.name: settled(host, kind) for kind in DOWN}
    host.reboot()
    check_same(host, base, before["down-base"], "after a reboot")
    check_same(host, top, before["down-top"], "after a reboot")
    check_cold(host, refused, before["down-refused"], "after a reboot, it cannot be taken to disk")
    check_cold(host, other, before["other"], "after a reboot, it does not ask")
    check(not host.exists("/var/lib/boot-down-base/stopped"), "a unit that is on disk runs no stop command")
    taken = [next(iter(on_disk(host, kind).values())) for kind in (base, top)]
    check(taken[0] > taken[1], "who needs another goes first", taken)
    check_equal(on_disk(host, other), {}, "images of who does not ask")
    check_equal(host.run("systemctl", "is-system-running", "--wait").out, "running\n", "the system")


@case
def in_time_or_not_at_all_when_the_system_goes_down(t):
    """A job that hangs or dies while the system goes down leaves a unit that systemd stops as ever."""
    host = t.host()
    base = DOWN[0]
    host.write("/etc/checkpointd/policy.d/down.yaml",
               f"units: {{{base.unit}: {{checkpoint-at-shutdown: yes, restore-at-boot: yes, timeouts: {{memory: 1s}}}}}}\n")
    host.run("systemctl", "daemon-reload")
    for turn, action in enumerate(("hang", "kill") if SOAK else ("hang",)):
        before = settled(host, base)
        had = on_disk(host, base)
        host.sh(f"mkdir -p /run/checkpointd; echo step=checkpoint.memory,action={action} >{FAULTS}")
        host.reboot()
        check_cold(host, base, before, f"{action} while the system went down")
        check_equal(len(host.read("/var/lib/boot-down-base/stopped").split()), turn + 1, f"{action}: runs of ExecStop=")
        check_equal(on_disk(host, base), had, f"{action}: images")
    host.sh("rm /etc/checkpointd/policy.d/down.yaml; systemctl disable --now boot-down-base boot-down-top "
            "boot-down-refused boot-other 2>&1")


# ---- failures on the way

FAST = ["restore.verify", "units.stage.open-gate", "restore.plan", "units.hand-over.main-pid", "restore.run"]
STEPS = FAST + ["restore.open", "restore.fresh", "units.stage.check", "units.stage.write-drop-in",
                "units.stage.reload", "units.stage.wait-helper", "units.stage.take-descriptors", "restore.agent",
                "restore.registers", "units.hand-over.wait-active",
                "units.hand-over.dismiss-helper", "units.hand-over.commit", "restore.mark-consumed",
                "restore.commit"]

# The unit's start job is done, whoever waits for it begins; what fails from here on is a new start.
READY_WAS_SAID = {"units.hand-over.dismiss-helper", "units.hand-over.wait-active", "units.hand-over.commit",
                  "restore.mark-consumed", "restore.commit", "restore.run"}


@case
def a_failure_on_the_way_is_a_cold_start_in_the_same_job(t):
    """Whoever waits for the unit goes on waiting, and is started after it."""
    host = plain(t)
    faults = [(step, action) for step in (STEPS if SOAK else FAST) for action in ("fail", "kill")]
    if not SOAK:
        faults = [fault for n, fault in enumerate(faults) if n % 2 == (n // 2) % 2]
    for step, action in faults:
        when = f"{action} at {step}"
        host.sh(f"systemctl stop {PLAIN.unit} boot-needs.service; rm -f {FAULTS}")
        start_fresh(host, PLAIN)
        before = checkpoint(host, PLAIN)
        host.sh(f"mkdir -p /run/checkpointd; echo step={step},action={action} >{FAULTS}")
        start(host, "boot-needs.service")
        check_cold(host, PLAIN, before, when)
        check_equal(image_state(host, PLAIN), "stale", f"{when}: the image\n{why(host, PLAIN)}")
        shown = host.sh("systemctl show -P ActiveState boot-needs.service; "
                        f"systemctl show -P ActiveEnterTimestampMonotonic boot-needs.service {PLAIN.unit}").out.split()
        check_equal(shown[0], "active", f"{when}: who needs it")
        if step not in READY_WAS_SAID:
            check(int(shown[1]) >= int(shown[2]), f"{when}: who needs it was started after it", shown)
        check_equal(host.unit(PLAIN.unit, "Restart")["Restart"], "on-failure", f"{when}: Restart= is the unit's own")
    host.run("rm", FAULTS)


@case
def a_stop_on_the_way_is_a_stop(t):
    host = plain(t)
    for step in ("restore.verify", "units.stage.take-descriptors"):
        start_fresh(host, PLAIN)
        checkpoint(host, PLAIN)
        host.sh(f"mkdir -p /run/checkpointd; echo step={step},action=stop >{FAULTS}; "
                f"systemctl start --no-block {PLAIN.unit}")
        halted = lambda: host.sh("pgrep -r T -f '[c]heckpointd-worker run' || true").out.strip()
        worker = wait_for(halted, f"the worker halts at {step}")
        host.run("systemctl", "stop", PLAIN.unit)
        host.sh(f"rm {FAULTS}; kill -CONT {worker}")
        wait_for(lambda: host.sh("crctl --json jobs").json()[-1]["State"] == "failed", "the job ends")
        check_equal(host.unit(PLAIN.unit, "ActiveState")["ActiveState"], "inactive",
                    f"stopped while its restore was at {step}")


@case
def killed_while_the_host_boots(t):
    """The worker at a step of its, then the daemon in the middle of its work."""
    host = plain(t)
    host.sh(f"systemctl enable {PLAIN.unit} 2>&1")
    before = checkpoint(host, PLAIN)
    host.write("/etc/tmpfiles.d/fault.conf", f"d /run/checkpointd 0700\nf {FAULTS} 0600 root root - "
               "step=restore.registers,action=kill\n")
    host.reboot()
    check_cold(host, PLAIN, before, "its worker was killed while the host booted")
    check_equal(image_state(host, PLAIN), "stale", "its image")
    host.run("rm", "/etc/tmpfiles.d/fault.conf", FAULTS)
    before = checkpoint(host, PLAIN)
    host.drop_in("checkpointd.service", "[Service]\nExecStartPost=/bin/sh -c 'if rm /etc/kill-it; then "
                 "{ sleep 0.2; kill -9 $MAINPID; } & fi'\n")
    host.write("/etc/kill-it", "")
    host.reboot()
    check(not host.exists("/etc/kill-it"), "the daemon was killed")
    token, _ = settled(host, PLAIN)
    wait_for(lambda: image_state(host, PLAIN) in ("consumed", "stale"), "the daemon killed: its image")
    check_equal(image_state(host, PLAIN), "consumed" if token == before[0] else "stale",
                f"the daemon killed: the image\n{why(host, PLAIN)}")
    check_unit(host, PLAIN, "the daemon was killed while the host booted")
    host.sh(f"rm -r /etc/systemd/system/checkpointd.service.d; systemctl daemon-reload; systemctl disable {PLAIN.unit} 2>&1")


@case
def a_helper_to_whom_nobody_comes_leaves_for_a_cold_start(t):
    """The worker is killed, and so is everything that would undo it."""
    host = plain(t)
    kinds = [PLAIN, SIX[1]] if SOAK else [PLAIN]
    install(host, kinds)

    def policy(timeouts=""):
        host.write("/etc/checkpointd/policy.d/short.yaml", f"defaults: {{restore-at-boot: yes{timeouts}}}\n")
        host.run("crctl", "policy", "reload")

    worker = "/usr/libexec/checkpointd/checkpointd-worker"
    for kind in kinds:
        policy()
        start_fresh(host, kind)
        before = checkpoint(host, kind)
        policy(", timeouts: {total: 8s}")  # in which a slow machine comes to that step as well
        host.sh(f"mkdir -p /run/checkpointd; echo step=units.stage.take-descriptors,action=stop >{FAULTS}; "
                f"systemctl start --no-block {kind.unit}")
        wait_for(lambda: host.sh("pgrep -r T -f '[c]heckpointd-worker run' || true").out.strip(), "the worker halts")
        host.sh(f"rm {FAULTS}; mv {worker} {worker}.gone; pkill -KILL -f '[c]heckpointd-worker run'; "
                "systemctl stop checkpointd.service")
        try:
            check_cold(host, kind, before, "nobody came to its helper")
        finally:
            host.run("mv", f"{worker}.gone", worker)
        host.run("systemctl", "restart", "checkpointd.service")
        host.wait_undone("nobody came to its helper")
        check_equal(image_state(host, kind), "stale", "its image")


@case
def killed_at_random_no_unit_is_stuck(t):
    host = plain(t)
    dice = random.Random(4711)
    for turn in range(30 if SOAK else 4):
        victim = ("[c]heckpointd-worker run", "[l]ibexec/checkpointd/checkpointd$", "[c]heckpointd/gate")[turn % 3]
        start_fresh(host, PLAIN)
        before = checkpoint(host, PLAIN)
        host.run("systemctl", "start", "--no-block", PLAIN.unit)
        time.sleep(dice.uniform(0, 0.5))
        host.sh(f"pkill -KILL -f '{victim}' || true")
        token, _ = settled(host, PLAIN)
        wait_for(lambda: image_state(host, PLAIN) in ("consumed", "stale"), f"{victim} killed: its image")
        expected = "consumed" if token == before[0] else "stale"
        check_equal(image_state(host, PLAIN), expected, f"{victim} killed: the image\n{why(host, PLAIN)}")
        check_unit(host, PLAIN, f"{victim} killed")


harness.main()
