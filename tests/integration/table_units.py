# SPDX-License-Identifier: LGPL-2.1-or-later
"""The units of table.py: for each type and special kind one that tells whether its state came through."""
import dataclasses

# Counts in its memory, and writes the number to $COUNT or below its RUNTIME_DIRECTORY.
TICK = """
import os, signal, socket, sys, time
def notify(text, *fds):
    if "NOTIFY_SOCKET" in os.environ:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
            peer.connect(os.environ["NOTIFY_SOCKET"])
            socket.send_fds(peer, [text], fds)
def bye(*_):
    print("bye at", n, flush=True)
    sys.exit(0)
def reload(*_):
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notify(b"RELOADING=1\\nMONOTONIC_USEC=%d" % now)
    notify(b"READY=1")
signal.signal(signal.SIGTERM, bye)
signal.signal(signal.SIGHUP, reload)
path = os.environ.get("COUNT") or os.environ["RUNTIME_DIRECTORY"] + "/n"
if "store" in sys.argv:
    notify(b"FDSTORE=1", os.memfd_create("kept"))
if "daemon" in sys.argv and os.fork():
    os._exit(0)
n = 0
notify(b"READY=1")
while True:
    n += 1
    with open(path + ".new", "w") as file:
        file.write(str(n))
    os.rename(path + ".new", path)
    notify(b"WATCHDOG=1")
    time.sleep(0.1)
"""

# Each connection is told how many there were, at whatever socket systemd or itself has opened.
GREET = """
import os, select, socket, sys
if "LISTEN_FDS" in os.environ:
    doors = [socket.socket(fileno=3 + i) for i in range(int(os.environ["LISTEN_FDS"]))]
else:
    doors = [socket.create_server(("127.0.0.1", int(sys.argv[1])))]
n = 0
while True:
    for door in select.select(doors, [], [])[0]:
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
os.unlink(os.environ["STATE_DIRECTORY"] + "/rows.db") if os.path.exists(os.environ["STATE_DIRECTORY"] + "/rows.db") else None
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

# A manager of its own control groups: itself in one, its child in another, which counts while it is there.
GROUPS = """
import os, time
own = [line[3:].strip() for line in open("/proc/self/cgroup") if line.startswith("0::")][0]
root = [line.split()[1] for line in open("/proc/mounts") if line.split()[2] == "cgroup2"][0] + own
def enter(name, pid):
    os.makedirs(root + name, exist_ok=True)
    with open(root + name + "/cgroup.procs", "w") as file:
        file.write(str(pid))
enter("/manager", os.getpid())
child = os.fork()
if child:
    enter("/work/one", child)
    with open(root + "/work/cgroup.max.depth", "w") as file:
        file.write("3")
    os.wait()
n = 0
while True:
    where = [line[3:].strip() for line in open("/proc/self/cgroup") if line.startswith("0::")][0]
    if where == own + "/work/one" and open(root + "/work/cgroup.max.depth").read() == "3\\n":
        n += 1
    with open(os.environ["RUNTIME_DIRECTORY"] + "/n", "w") as file:
        file.write(str(n))
    time.sleep(0.1)
"""

# Owns a name on the bus as sd-bus would, in as few words as possible.
NAMED = """
import os, socket, struct, time
bus = socket.socket(socket.AF_UNIX)
bus.connect("/run/dbus/system_bus_socket")
bus.send(b"\\0AUTH EXTERNAL %s\\r\\n" % str(os.getuid()).encode().hex().encode())
bus.recv(99)
bus.send(b"BEGIN\\r\\n")
def text(value):
    return struct.pack("<I", len(value)) + value + b"\\0"
def pad(data, size):
    return data + b"\\0" * (-len(data) % size)
serial = 0
def call(member, body=b"", signature=b""):
    global serial
    serial += 1
    fields = b""
    for code, kind, value in ((1, b"o", b"/org/freedesktop/DBus"), (2, b"s", b"org.freedesktop.DBus"),
                              (3, b"s", member), (6, b"s", b"org.freedesktop.DBus")):
        fields = pad(fields, 8) + bytes([code, 1]) + kind + b"\\0" + text(value)
    if signature:
        fields = pad(fields, 8) + bytes([8, 1]) + b"g\\0" + bytes([len(signature)]) + signature + b"\\0"
    bus.send(pad(struct.pack("<cBBBIII", b"l", 1, 0, 1, len(body), serial, len(fields)) + fields, 8) + body)
call(b"Hello")
call(b"RequestName", pad(text(b"org.example.Table"), 4) + struct.pack("<I", 0), b"su")
while True:
    bus.recv(999)
"""

# Talks to itself over TCP.
GUEST = """
import os, socket, time
door = socket.create_server(("127.0.0.1", 7009))
near = socket.create_connection(("127.0.0.1", 7009))
far, _ = door.accept()
n = 0
while True:
    near.send(b"x")
    n += len(far.recv(1))
    with open(os.environ["RUNTIME_DIRECTORY"] + "/n", "w") as file:
        file.write(str(n))
    time.sleep(0.1)
"""

BUS_POLICY = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><policy user="root"><allow own="org.example.Table"/></policy></busconfig>
"""

PROGRAMS = {"tick": TICK, "guest": GUEST, "greet": GREET, "workers": WORKERS, "groups": GROUPS, "named": NAMED}

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
SystemCallFilter=@system-service
"""


@dataclasses.dataclass
class Kind:
    row: str            # how the table calls it
    name: str           # of its unit
    service: str = ""   # lines of [Service]; without them `start` makes the unit
    count: str = ""     # a shell command that prints a number, which the unit never lets fall back
    socket: str = ""    # lines of [Socket]
    start: str = ""     # a shell command that starts it, where `systemctl start` does not
    unit: str = ""      # its whole name, where it is not table-NAME.service
    state: str = "active"
    restarts: bool = True  # PID 1 starts it anew when it crashes
    since: int = 0      # systemd that knows it
    made: bool = False  # by StartTransientUnit
    refused: dict = dataclasses.field(default_factory=dict)  # columns, and the words for crctl that say why not

    def __post_init__(self):
        self.unit = self.unit or f"table-{self.name}.service"
        self.count = self.count or f"cat /run/table-{self.name}/n"


def python(program, arguments=""):
    return f"ExecStart=/usr/bin/python3 /opt/table/{program}.py {arguments}\n"


def tick(name, lines="", arguments=""):
    return f"{lines}{python('tick', arguments)}RuntimeDirectory=table-{name}\n"


def knock(target, prefix=""):
    """One connection to the greeter; it says how many there were."""
    family, address = ("AF_UNIX", f'"{target}"') if str(target).startswith("/") else (
        "AF_INET", f'("127.0.0.1", {target})')
    return (f"{prefix} python3 -c 'import socket; s = socket.socket(socket.{family}); s.settimeout(5); "
            f"s.connect({address}); print(s.recv(9).decode())'")


SCOPE = """mkdir -p /var/tmp/table-scope
COUNT=/var/tmp/table-scope/n systemd-run --quiet --scope --unit=table-scope --slice=table.slice \\
    -p MemoryMax=1G -p TimeoutStopSec=33 --description='A scope' \\
    /usr/bin/python3 /opt/table/tick.py </dev/null >/var/tmp/table-scope/log 2>&1 &"""

TRANSIENT = """systemd-run --quiet --unit=table-transient --slice=table.slice -p MemoryMax=1G \\
    -p TimeoutStopSec=33 --description='A transient unit' -p RuntimeDirectory=table-transient \\
    -p Restart=on-failure -p RestartSec=0.1 /usr/bin/python3 /opt/table/tick.py"""


# What a stop would lose.
ONLY_IN_PLACE = {column: "checkpoint" for column in ("stop, restore", "stop, reboot, restore", "stop, start", "stop, boot",
                                                     "shutdown, boot")}
ONLY_IN_PLACE["snapshot, restore"] = "checkpoint --mode snapshot"
# Nothing starts at a boot what exists only while it runs.
NEVER_STARTED = {column: "enable" for column in ("stop, start", "stop, boot", "shutdown, boot")}

CAN_BE_CARRIED = [
    Kind("Type=simple", "simple", tick("simple", "Type=simple\n")),
    Kind("Type=exec", "exec", tick("exec", "Type=exec\n")),
    Kind("Type=idle", "idle", tick("idle", "Type=idle\n")),
    Kind("Type=notify, WatchdogSec=", "notify", tick("notify", "Type=notify\nWatchdogSec=10\n")),
    Kind("Type=notify-reload", "notify-reload", tick("notify-reload", "Type=notify-reload\n"), since=253),
    Kind("Type=forking, PIDFile=", "forking",
         "Type=forking\nPIDFile=/run/table-forking/pid\nRuntimeDirectory=table-forking\nPrivateTmp=yes\n"
         "ExecStart=/usr/bin/redis-server --port 7003 --daemonize yes --pidfile /run/table-forking/pid "
         "--save '' --dir /tmp\n", "redis-cli -p 7003 incr x"),
    Kind("Type=forking, main process guessed", "guess", tick("guess", "Type=forking\n", "daemon")),
    Kind("Type=oneshot", "oneshot", tick("oneshot", "Type=oneshot\n"),
         start="systemctl start --no-block table-oneshot", state="activating", restarts=False),
    Kind("Type=oneshot, in the last of several ExecStart=", "last",
         "Type=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n" + tick("last"),
         start="systemctl start --no-block table-last", state="activating", restarts=False),
    Kind("Type=oneshot, before the last of several ExecStart=", "first",
         "Type=oneshot\n" + tick("first") + "ExecStart=/bin/true\n",
         start="systemctl start --no-block table-first", state="activating", restarts=False, refused=ONLY_IN_PLACE),
    Kind("KillMode=mixed, child of ExecStartPost=", "mixed",
         tick("mixed", "KillMode=mixed\nExecStartPost=/bin/sh -c 'sleep 100000 &'\n"),
         "test $(wc -l </sys/fs/cgroup/system.slice/table-mixed.service/cgroup.procs) = 2 && "
         "cat /run/table-mixed/n"),
    Kind("transient service (systemd-run)", "transient", start=TRANSIENT, made=True,
         refused=NEVER_STARTED),
    Kind("scope (systemd-run --scope)", "scope", count="cat /var/tmp/table-scope/n", start=SCOPE,
         unit="table-scope.scope", restarts=False, made=True,
         refused=NEVER_STARTED | {"suspend, restore": "checkpoint --mode suspend"}),
    Kind("Delegate=yes, control groups below", "delegate",
         "Delegate=yes\n" + python("groups") + "RuntimeDirectory=table-delegate\n"),
    Kind("socket-activated, two named sockets", "activated", python("greet"), knock(7002) + "; " +
         knock("/run/table-activated.sock"),
         "ListenStream=127.0.0.1:7002\nListenStream=/run/table-activated.sock\nFileDescriptorName=door\n"),
    Kind("DynamicUser=, PrivateDevices=, ProtectSystem=strict, SystemCallFilter= …", "strict",
         tick("strict", STRICT)),
    Kind("PrivateNetwork=, PrivateIPC=, ProtectHostname=", "network",
         python("greet", "7004") + "PrivateNetwork=yes\nProtectHostname=yes\nPrivateIPC=yes\n",
         knock(7004, "nsenter -n -t $(systemctl show -P MainPID table-network.service)")),
    Kind("PrivateUsers= and many more: redis-server.service as Debian packages it", "redis",
         count="redis-cli -p 6379 incr x", unit="redis-server.service"),
    Kind("User=, PrivateTmp=, a listening socket of its own", "greeter",
         python("greet", "7001") + "User=nobody\nPrivateTmp=yes\n", knock(7001)),
    Kind("StandardOutput=append:, a shell", "shell",
         "ExecStart=/bin/bash -c 'n=0; while :; do n=$((n+1)); echo $n >/run/table-shell/n; sleep 0.1; done'\n"
         "RuntimeDirectory=table-shell\nStandardOutput=append:/var/log/table-shell.log\n"),
    Kind("several processes, pipes", "pipeline",
         "ExecStart=/bin/bash -c '(n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done) | while read x; do "
         "echo $x >/run/table-pipeline/n; done'\nRuntimeDirectory=table-pipeline\n"),
    Kind("several processes, shared memory, files", "workers", python("workers") +
         "StateDirectory=table-workers\n", "cat /var/lib/table-workers/n"),
    Kind("descriptors in the store of systemd (FDSTORE=1)", "store",
         tick("store", "Type=notify\nFileDescriptorStoreMax=2\n", "store"),
         refused=ONLY_IN_PLACE),
]

# Those of width.py, by their names.
WIDTH = ("strict", "notify", "greeter", "activated", "network", "shell", "pipeline", "forking", "workers")

REFUSED = [
    Kind("a connected TCP socket", "guest", python("guest") + "RuntimeDirectory=table-guest\n"),
    Kind("Type=dbus", "dbus", "Type=dbus\nBusName=org.example.Table\n" + python("named"), "echo 9"),
    Kind("instance of a socket unit with Accept=yes", "accept", unit="table-accept@*.service", count="echo 9",
         start="""printf '[Socket]\nListenStream=7005\nAccept=yes\n' >/etc/systemd/system/table-accept.socket
         printf '[Service]\nExecStart=sleep 1000\n' >/etc/systemd/system/table-accept@.service
         systemctl daemon-reload; systemctl start table-accept.socket
         systemd-run --quiet python3 -c '
import socket, time
guest = socket.create_connection(("127.0.0.1", 7005))
time.sleep(600)'
         until systemctl list-units --plain --no-legend 'table-accept@*.service' | grep .; do sleep 0.1; done"""),
    Kind("the service manager of a user", "manager", unit="user@4242.service", count="echo 9",
         start="""printf '[Service]\nExecStart=sleep 1000\n' >/run/systemd/system/user@4242.service
         systemctl daemon-reload; systemctl start user@4242.service"""),
    Kind("scope whose processes hold a terminal", "terminal", unit="table-terminal.scope", count="echo 9",
         start="systemd-run --quiet -p Type=exec script -qfc "
         "'systemd-run --quiet --scope --unit=table-terminal sleep 1000' /dev/null; "
         "until systemctl is-active table-terminal.scope; do sleep 0.1; done"),
    Kind("login session", "session", unit="session-4242.scope", count="echo 9",
         start="systemd-run --quiet --scope --unit=session-4242 sleep 1000 </dev/null >/dev/null 2>&1 &"),
    Kind("systemd itself", "init", unit="init.scope", count="echo 9", start="true"),
]
