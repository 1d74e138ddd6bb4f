#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Services of many kinds go to disk and come back, most of them through a reboot; others are refused whole."""
import dataclasses

import harness
from harness import case, check, check_equal, check_in, wait_for

TICK = """
import os, socket, time
def notify(text):
    if "NOTIFY_SOCKET" in os.environ:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
            peer.sendto(text, os.environ["NOTIFY_SOCKET"])
notify(b"READY=1")
n = 0
while True:
    n += 1
    with open(os.environ["STATE_DIRECTORY"] + "/n", "w") as file:
        file.write(str(n))
    print("tick", n, flush=True)
    notify(b"WATCHDOG=1")
    time.sleep(0.1)
"""

GREET = """
import os, socket, sys
if "LISTEN_FDS" in os.environ:
    door = socket.socket(fileno=3)
else:
    door = socket.create_server(("127.0.0.1", int(sys.argv[1])))
n = 0
while True:
    guest, _ = door.accept()
    n += 1
    guest.send(b"%d" % n)
    guest.close()
"""

WORKERS = """
import multiprocessing as mp, os, sqlite3, time
def work(queue, done):
    while True:
        queue.get()
        with done.get_lock():
            done.value += 1
queue, done = mp.Queue(), mp.Value("i", 0)
for _ in range(3):
    mp.Process(target=work, args=(queue, done)).start()
rows = sqlite3.connect(os.environ["STATE_DIRECTORY"] + "/rows.db")
rows.execute("create table rows (n)")
n = 0
while True:
    n += 1
    queue.put(n)
    rows.execute("insert into rows values (?)", (n,))
    rows.commit()
    with open(os.environ["STATE_DIRECTORY"] + "/n", "w") as file:
        file.write(str(done.value))
    time.sleep(0.1)
"""

GUEST = """
import socket, time
door = socket.create_server(("127.0.0.1", 7009))
near = socket.create_connection(("127.0.0.1", 7009))
far, _ = door.accept()
n = 0
while True:
    near.send(b"x")
    n += len(far.recv(1))
    open("/run/width-guest/n", "w").write(str(n))
    time.sleep(0.1)
"""

STRICT = """DynamicUser=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectSystem=strict
ProtectHome=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
NoNewPrivileges=yes
MemoryDenyWriteExecute=yes
RestrictNamespaces=yes
LockPersonality=yes
CapabilityBoundingSet=
SystemCallFilter=@system-service"""


@dataclasses.dataclass
class Kind:
    name: str
    service: str       # lines of [Service]
    count: str         # a shell command that prints a number which the service never lets fall back
    programs: dict = dataclasses.field(default_factory=dict)
    socket: str = ""   # lines of [Socket]

    @property
    def unit(self):
        return f"width-{self.name}.service"


def python(name, arguments=""):
    return f"ExecStart=/usr/bin/python3 /opt/width/{name}.py {arguments}\n"


def knock(port, prefix=""):
    """One connection to the greeter; it says how many there were."""
    return (f"{prefix} python3 -c 'import socket; print(socket.create_connection((\"127.0.0.1\", {port}), 5)"
            ".recv(9).decode())'")


KINDS = [
    Kind("strict", python("tick") + "StateDirectory=width-strict\n" + STRICT,
         "cat /var/lib/private/width-strict/n", {"tick": TICK}),
    Kind("notify", python("tick") + "Type=notify\nWatchdogSec=5\nStateDirectory=width-notify\nRestart=always",
         "cat /var/lib/width-notify/n", {"tick": TICK}),
    Kind("greeter", python("greet", "7001") + "User=nobody\nPrivateTmp=yes", knock(7001), {"greet": GREET}),
    Kind("activated", python("greet"), knock(7002), {"greet": GREET}, "ListenStream=127.0.0.1:7002"),
    Kind("network", python("greet", "7004") + "PrivateNetwork=yes\nProtectHostname=yes\nPrivateIPC=yes",
         knock(7004, "nsenter -n -t $(systemctl show -P MainPID width-network.service)"), {"greet": GREET}),
    Kind("shell", "ExecStart=/bin/bash -c 'n=0; while :; do n=$((n+1)); echo $n >/run/width-shell/n; sleep "
         "0.1; done'\nRuntimeDirectory=width-shell\nStandardOutput=append:/var/log/width-shell.log",
         "cat /run/width-shell/n"),
    Kind("pipeline", "ExecStart=/bin/bash -c '(n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done) | while "
         "read x; do echo $x >/run/width-pipeline/n; done'\nRuntimeDirectory=width-pipeline",
         "cat /run/width-pipeline/n"),
    Kind("forking", "Type=forking\nPIDFile=/run/width-forking/pid\nRuntimeDirectory=width-forking\n"
         "ExecStart=/usr/bin/redis-server --port 7003 --daemonize yes --pidfile /run/width-forking/pid "
         "--save '' --dir /tmp\nPrivateTmp=yes", "redis-cli -p 7003 incr x"),
    Kind("workers", python("workers") + "StateDirectory=width-workers", "cat /var/lib/width-workers/n",
         {"workers": WORKERS}),
]


def install(host, kind):
    for name, text in kind.programs.items():
        host.write(f"/opt/width/{name}.py", text)
    host.write(f"/etc/systemd/system/{kind.unit}", f"[Service]\n{kind.service}\n")
    if kind.socket:
        host.write(f"/etc/systemd/system/{kind.unit.replace('.service', '.socket')}",
                   f"[Socket]\n{kind.socket}\n")


def start(host, kind):
    if kind.socket:
        host.run("systemctl", "start", kind.unit.replace(".service", ".socket"))
    host.run("systemctl", "start", kind.unit)


def count(host, kind):
    out = host.sh(kind.count, check=False).out.strip()
    return int(out) if out.isdigit() else 0


def install_all(host, kinds):
    for kind in kinds:
        install(host, kind)
    host.run("systemctl", "daemon-reload")
    for kind in kinds:
        start(host, kind)


def wait_till_it_counts(host, kind, above, when):
    return wait_for(lambda: max(count(host, kind), above) if count(host, kind) > above else 0,
                    f"{kind.unit} {when}: counts on from {above}")


def check_inactive(host, unit):
    shown = host.unit(unit)
    check_equal((shown["ActiveState"], shown["Result"], shown["NRestarts"]), ("inactive", "success", "0"),
                f"{unit} after the checkpoint")


def go_to_disk(host, kind):
    pid = host.main_pid(kind.unit)
    reached = wait_till_it_counts(host, kind, 2, "started")
    host.run("crctl", "checkpoint", kind.unit)
    check_inactive(host, kind.unit)
    return pid, reached


def come_back(host, kind, pid, reached):
    if kind.socket:
        host.run("systemctl", "start", kind.unit.replace(".service", ".socket"))
    host.run("crctl", "restore", kind.unit)
    shown = host.unit(kind.unit)
    check_equal((shown["ActiveState"], int(shown["MainPID"])), ("active", pid), f"{kind.unit} restored")
    wait_till_it_counts(host, kind, reached, "restored")


@case
def every_kind_comes_back_after_a_reboot(t):
    host = t.host()
    install_all(host, KINDS)
    before = {kind.name: go_to_disk(host, kind) for kind in KINDS}
    host.reboot()
    for kind in KINDS:
        come_back(host, kind, *before[kind.name])
    check_equal(host.run("systemctl", "--failed", "--plain", "--no-legend").out, "", "failed units")


@case
def what_was_restored_can_go_to_disk_again(t):
    """The second image of a process is made of what the first restore rebuilt."""
    host = t.host()
    for kind in KINDS if harness.SOAK else [KINDS[0], KINDS[-1]]:
        come_back(host, kind, *go_to_disk(host, kind))


@case
def they_are_watched_as_before(t):
    host = t.host()
    for kind in KINDS:
        check_equal(host.unit(kind.unit)["NRestarts"], "0", f"{kind.unit}: nothing restarted it, no watchdog")
        host.run("systemctl", "stop", kind.unit)
        shown = host.unit(kind.unit)
        check(shown["ActiveState"] in ("inactive", "failed"), f"{kind.unit} stopped", shown)
        check(not host.exists(f"/sys/fs/cgroup/system.slice/{kind.unit}"), f"{kind.unit}: nothing of it is left")


@case
def a_connection_is_refused_and_goes_on(t):
    """What cannot be carried is named, and the service never notices."""
    host = t.host()
    kind = Kind("guest", python("guest") + "RuntimeDirectory=width-guest", "cat /run/width-guest/n", {"guest": GUEST})
    install_all(host, [kind])
    reached = wait_till_it_counts(host, kind, 2, "started")
    pid = host.main_pid(kind.unit)
    outcome = host.run("crctl", "checkpoint", kind.unit, check=False)
    check(outcome.code != 0, "a connected socket is refused", outcome)
    check_in(f"pid {pid} fd", outcome.err, "the error names the descriptor")
    check_equal(host.main_pid(kind.unit), pid, "its main process")
    wait_till_it_counts(host, kind, reached, "refused")
    check(not host.exists(f"/run/systemd/system/{kind.unit}.d"), "no drop-in is left")
    listed = host.run("crctl", "list", "--json").out
    check(kind.unit not in listed, "no image of it is left", listed)


@case
def an_active_unit_is_not_restored_over(t):
    host = t.host()
    kind = KINDS[-1]
    start(host, kind)
    image = host.run("crctl", "checkpoint", kind.unit, "--json").json()["Image"]
    start(host, kind)
    pid = host.main_pid(kind.unit)
    outcome = host.run("crctl", "restore", image, check=False)
    check(outcome.code != 0, "a running unit is in the way", outcome)
    check_equal(host.main_pid(kind.unit), pid, "the running one is untouched")


@case
def what_is_frozen_is_refused_at_once(t):
    """By systemctl freeze, past which systemd 256 and newer let no job, and by a cgroup above the unit's."""
    host, unit, flag = t.host(), "width-frozen.service", "/sys/fs/cgroup/width.slice/cgroup.freeze"
    host.write(f"/etc/systemd/system/{unit}", "[Service]\nExecStart=/bin/sleep infinity\nSlice=width.slice\n")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", unit)
    pid = host.main_pid(unit)
    for freeze, thaw in ((f"systemctl freeze {unit}", f"systemctl thaw {unit}"),
                         ("systemctl freeze width.slice", "systemctl thaw width.slice"),
                         (f"echo 1 >{flag}", f"echo 0 >{flag}")):
        host.sh(freeze)
        outcome = host.run("crctl", "checkpoint", unit, check=False)
        host.sh(thaw)
        check_equal(outcome.code, 4, f"after {freeze}: {outcome.err}")
        check_in("is frozen", outcome.err, f"after {freeze}: what is said")
        check_in("thaw", outcome.err, f"after {freeze}: the remedy")
        check_equal(host.unit(unit, "ActiveState", "MainPID"), {"ActiveState": "active", "MainPID": str(pid)},
                    f"the unit after {freeze}")
    host.run("crctl", "checkpoint", unit)
    host.run("systemctl", "freeze", "width.slice")
    outcome = host.run("crctl", "restore", unit, check=False)
    host.run("systemctl", "thaw", "width.slice")
    check_equal(outcome.code, 4, f"restore into a frozen slice: {outcome.err}")
    check_in("its slice width.slice is frozen", outcome.err, "restore into a frozen slice")
    check_equal(host.unit(unit)["ActiveState"], "inactive", "the unit whose restore was refused")
    host.run("crctl", "restore", unit)
    check_equal(host.main_pid(unit), pid, "restored when it was thawed")
    host.run("systemctl", "stop", unit)


harness.main()
