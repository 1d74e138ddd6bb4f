#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Units of which a plugin carries open files, a connection and memory go to disk and come back: plugins/sample, whose
device is a folder, with a program of two processes."""
import base64
import json
import pathlib
import tempfile

import harness
from harness import case, check, check_equal, check_in, wait_for

FOLDER = "/var/lib/sample"
PLUGIN = "/usr/lib/checkpointd/plugins/sample.so"
UNIT = "sample-user.service"
ECHO = f"""import os, selectors, socket
if os.path.exists("{FOLDER}/peer"):
    os.unlink("{FOLDER}/peer")
door = socket.socket(socket.AF_UNIX)
door.bind("{FOLDER}/peer")
door.listen()
wait = selectors.DefaultSelector()
wait.register(door, selectors.EVENT_READ)
while True:
    for key, _ in wait.select():
        if key.fileobj is door:
            wait.register(door.accept()[0], selectors.EVENT_READ)
            continue
        try:
            if key.fileobj.send(key.fileobj.recv(100)) == 0:
                raise OSError("it has gone")
        except OSError:
            wait.unregister(key.fileobj)
            key.fileobj.close()
"""
PROGRAM = f"""import ctypes, fcntl, json, mmap, os, socket, struct, termios, threading, time
def terminal(rows, columns):
    fd = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
    return fd
def size(fd):
    return list(struct.unpack("4H", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))[:2])
def report(name, state):
    with open(f"{FOLDER}/{{name}}.part", "w") as out:
        json.dump(state, out)
    os.rename(f"{FOLDER}/{{name}}.part", f"{FOLDER}/{{name}}.json")
shared = terminal(33, 44)
parent = os.getpid()
if os.fork() == 0:
    own, count = terminal(55, 66), 0
    while os.getppid() == parent:
        count += 1
        report("child", dict(count=count, shared=size(shared), own=size(own)))
        time.sleep(0.05)
    os._exit(0)
own = terminal(77, 88)
peer = socket.socket(socket.AF_UNIX)
peer.connect("{FOLDER}/peer")
peer.setblocking(False)
with open("{FOLDER}/some.memory", "wb+") as file:
    file.truncate(16384)
    memory = mmap.mmap(file.fileno(), 8192, offset=8192)
memory[8:] = b"m" * 8184
device = f"{FOLDER}/{{parent}}"
with open(device, "w") as out:
    out.write("4711")
driver = ctypes.CDLL("/usr/lib/checkpointd-test-plugins/sample_device.so")  # which knows nothing of Python's lock
threading.Thread(target=driver.sample_device_thread, args=[device.encode()], daemon=True).start()
while "device\\n" not in [open(f"/proc/self/task/{{tid}}/comm").read() for tid in os.listdir("/proc/self/task")]:
    time.sleep(0.001)
count = echoes = wrong = 0
while True:
    wrong += struct.unpack("Q", memory[:8])[0] != count or memory[8:] != b"m" * 8184
    count += 1
    memory[:8] = struct.pack("Q", count)
    peer.send(b"x")
    try:
        echoes += len(peer.recv(100))
    except BlockingIOError:
        pass
    report("parent", dict(count=count, echoes=echoes, wrong=wrong, shared=size(shared), own=size(own), pid=os.getpid()))
    time.sleep(0.05)
"""


class User:
    def __init__(self, host):
        self.host = host
        host.sh(f"mkdir -p {FOLDER} /run/checkpointd; touch /run/checkpointd/allow-faults; "
                f"cp /usr/lib/checkpointd-test-plugins/sample.so {PLUGIN}")
        self.policy()
        for name, text in (("echo", ECHO), ("user", PROGRAM)):
            host.write(f"/usr/local/lib/sample-{name}.py", text)
            host.write(f"/etc/systemd/system/sample-{name}.service",
                       f"[Service]\nExecStart=/usr/bin/python3 /usr/local/lib/sample-{name}.py\n")
        host.sh("systemctl daemon-reload; systemctl start sample-echo.service")
        wait_for(lambda: host.exists(f"{FOLDER}/peer"), "the peer listens")
        self.start()

    def policy(self, undo_time=0, devices="10min"):
        self.host.write("/etc/checkpointd/policy.yaml",
                        f"version: 1\ndefaults: {{pid-taken: namespace, timeouts: {{devices: {devices}}}, "
                        f"plugins: {{sample: {{folder: {FOLDER}, undo-time: {undo_time}}}}}}}\n")
        self.host.run("crctl", "policy", "reload")

    def halt_in_the_middle(self):
        """A worker that has the device; of its unit, the stop timeout."""
        self.host.run("crctl", "checkpoint", UNIT, "--no-wait", "--x-fault", "step=checkpoint.collect,action=stop")
        wait_for(lambda: self.host.sh("pgrep -r T -f '[c]heckpointd-worker run' || true").out, "the worker halts")
        return self.host.sh("systemctl show 'checkpointd-job-*' -p TimeoutStopUSec --value").out.strip()

    def kill_worker(self):
        self.host.sh("systemctl kill -s KILL 'checkpointd-job-*'")

    def start(self):
        self.host.sh(f"systemctl stop {UNIT}; rm -f {FOLDER}/*.json {FOLDER}/[0-9]* {FOLDER}/log; systemctl start {UNIT}")
        wait_for(lambda: self.host.exists(f"{FOLDER}/child.json") and self.look()["echoes"] > 3, "it runs")
        return self

    def look(self, name="parent"):
        return json.loads(self.host.sh(f"cat {FOLDER}/{name}.json 2>/dev/null || echo '{{}}'").out or "{}") or \
            {"count": 0, "echoes": 0}

    def check_goes_on(self, when, since=None):
        """Both count on; terminals, connection and memory are what they were, from inside."""
        self.host.sh(f"for f in {FOLDER}/*.memory.new; do [ -e $f ] && mv $f {FOLDER}/some.memory; done; true")
        first, child = self.look(), self.look("child")
        wait_for(lambda: self.look()["echoes"] > first["echoes"] + 2 and self.look("child")["count"] > child["count"],
                 f"{when}: both go on")
        now, child = self.look(), self.look("child")
        check_equal((now["shared"], now["own"], child["shared"], child["own"]), ([33, 44], [77, 88], [33, 44], [55, 66]),
                    f"{when}: terminals")
        check_equal(now["wrong"], 0, f"{when}: looks at memory that was wrong")
        if since:
            check_equal(now["pid"], since["pid"], f"{when}: PID, as it sees it")
            check(now["count"] >= since["count"], f"{when}: it counts on", (since, now))
        check_equal(self.host.sh(f"ls -d {FOLDER}/*.park 2>/dev/null || true").out, "", f"{when}: processes that are parked")
        return now

    def crctl(self, verb, *options, check=True):
        return self.host.run("crctl", verb, UNIT, *options, check=check, timeout=180)

    def refuse(self, verb, *options):
        outcome = self.crctl(verb, *options, check=False)
        check(outcome.code != 0, f"{verb} is refused", outcome)
        return outcome.err

    def check_down(self, when):
        state = self.host.unit(UNIT)
        check_equal((state["ActiveState"], state["Result"]), ("inactive", "success"), f"{when}: the unit")
        check_equal(self.host.sh("pgrep -f [s]ample-user.py || true").out, "", f"{when}: its processes")

    def check_no_trace(self, when):
        self.host.wait_undone(when)
        drop_ins = self.host.unit(UNIT, "DropInPaths")["DropInPaths"]
        check_equal(harness.without_gate(drop_ins), [], f"{when}: drop-ins")


_users = []


def user(t):
    host = t.host()
    if not _users:
        _users.append(User(host))
    if host.unit(UNIT)["ActiveState"] != "active":
        _users[0].start()
    return _users[0]


@case
def down_and_up(t):
    unit = user(t)
    before = unit.check_goes_on("fresh")
    unit.crctl("checkpoint")
    unit.check_down("checkpoint")
    unit.crctl("restore")
    after = unit.check_goes_on("restored", before)
    maps = unit.host.run("cat", f"/proc/{after['pid']}/maps").out
    check_in("00003000", [line for line in maps.splitlines() if "some.memory" in line][0], "where it is mapped from")


@case
def snapshot_and_suspend(t):
    unit = user(t)
    unit.crctl("checkpoint", "--mode", "snapshot")
    before = unit.check_goes_on("snapshot")
    unit.crctl("checkpoint", "--mode", "suspend")
    unit.crctl("restore")
    unit.check_goes_on("resumed", before)


@case
def without_the_plugin_it_is_refused(t):
    unit = user(t)
    unit.host.run("mv", PLUGIN, "/root/")
    check_in("cannot carry this terminal", unit.refuse("checkpoint"), "what cannot be carried")
    before = unit.check_goes_on("refused")
    unit.host.run("mv", "/root/sample.so", PLUGIN)
    unit.crctl("checkpoint")
    unit.host.run("mv", PLUGIN, "/root/")
    check_in("plugin 'sample': is not installed", unit.refuse("restore"), "what is missing")
    unit.host.run("mv", "/root/sample.so", PLUGIN)
    unit.crctl("restore")
    unit.check_goes_on("restored", before)


@case
def what_the_plugin_reads_is_checked(t):
    """By what it reads, before anything runs; what it reads by itself, before anything is begun."""
    unit = user(t)
    before = unit.check_goes_on("fresh")
    image = unit.host.run("crctl", "--json", "checkpoint", UNIT, timeout=180).json()["Image"]
    for name, message in (("sample-pages-*.img", "cannot move what is mapped"), ("sample-device.txt", "is damaged")):
        flip = f"printf '\\{{}}' | dd of=$(echo /var/lib/checkpointd/{image}/{name}) bs=1 seek=3 conv=notrunc status=none"
        byte = unit.host.sh(f"od -An -j3 -N1 -to1 /var/lib/checkpointd/{image}/{name}").out.strip()
        unit.host.sh(flip.format("377"))
        check_in(message, unit.refuse("restore"), f"a damaged {name}")
        unit.check_down(f"a damaged {name}")
        unit.check_no_trace(f"a damaged {name}")
        unit.host.sh(flip.format(byte))
    unit.crctl("restore")
    unit.check_goes_on("restored", before)


@case
def faults_at_every_step_of_it(t):
    unit = user(t)
    for step in ("checkpoint.device-mappings", "checkpoint.device-files"):
        for action in ("fail", "kill"):
            before = unit.look()
            unit.refuse("checkpoint", "--x-fault", f"step={step},action={action}")
            unit.check_goes_on(f"{step} {action}", before)
            unit.check_no_trace(f"{step} {action}")
    before = unit.look()
    unit.crctl("checkpoint")
    for step in ("restore.device-files", "restore.device-files.again", "restore.device-files.share"):
        for action in ("fail", "kill"):
            unit.refuse("restore", "--x-fault", f"step={step},action={action}")
            wait_for(lambda: unit.host.unit(UNIT)["ActiveState"] == "inactive", f"{step}: inactive")
            unit.check_down(f"{step} {action}")
            unit.check_no_trace(f"{step} {action}")
    unit.crctl("restore")
    unit.check_goes_on("restored in the end", before)


@case
def undoing_is_not_cut_short(t):
    """A worker has as long as the policy gives to devices; its recovery, by PID 1 alone, as long as the plugin says."""
    unit = user(t)
    before = unit.look()
    for devices, limit in (("5min", "11min 30s"), ("infinity", "infinity")):
        unit.policy(devices=devices)
        check_equal(unit.halt_in_the_middle(), limit, f"{devices} for devices: when PID 1 ends a worker")
        unit.kill_worker()
        unit.host.wait_undone("a dead worker")
        unit.check_goes_on("a dead worker", before)
    unit.policy(undo_time=5000)
    unit.host.drop_in("checkpointd-job-.service", "[Service]\nTimeoutStopSec=1\n")
    check_equal(unit.halt_in_the_middle(), "1s", "a stop timeout that is too short")
    unit.host.run("systemctl", "stop", "checkpointd.service")
    unit.host.sh(f"rm {FOLDER}/log")
    unit.kill_worker()
    wait_for(lambda: unit.host.exists(f"{FOLDER}/log"), "the undo comes to its end", 60)
    check_equal(unit.host.read(f"{FOLDER}/log").split(), ["undo"], "what has come to its end")
    unit.host.sh("rm /etc/systemd/system/checkpointd-job-.service.d/test.conf; systemctl daemon-reload; "
                 "systemctl start checkpointd.service")  # the recovery may lose what it had with that reload, or its own
    unit.host.wait_undone("undone slowly")
    unit.policy()
    unit.check_goes_on("undone slowly", before)
    unit.check_no_trace("undone slowly")


@case
def with_private_users(t):
    """Plugins make files before the tasks enter the user namespace, and map them inside."""
    unit = user(t)
    unit.host.sh(f"echo PrivateUsers=yes >>/etc/systemd/system/{UNIT}; systemctl daemon-reload")
    before = unit.start().check_goes_on("fresh")
    inside = unit.host.run("cat", f"/proc/{before['pid']}/uid_map").out
    check(inside != unit.host.run("cat", "/proc/1/uid_map").out, "it has a user namespace", inside)
    unit.crctl("checkpoint")
    unit.check_down("checkpoint")
    for action in ("fail", "kill"):
        unit.refuse("restore", "--x-fault", f"step=restore.device-files.share,action={action}")
        wait_for(lambda: unit.host.unit(UNIT)["ActiveState"] == "inactive", f"{action}: inactive")
        unit.check_no_trace(action)
    unit.crctl("restore")
    since = unit.check_goes_on("restored", before)
    check_equal(unit.host.run("cat", f"/proc/{before['pid']}/uid_map").out, inside, "users")
    unit.crctl("checkpoint", "--mode", "suspend")
    unit.crctl("restore")
    unit.check_goes_on("resumed", since)
    unit.host.sh(f"sed -i /PrivateUsers/d /etc/systemd/system/{UNIT}; systemctl daemon-reload; systemctl stop {UNIT}")


@case
def in_a_pid_namespace(t):
    unit = user(t)
    unit.crctl("checkpoint")
    unit.crctl("restore")
    before = unit.check_goes_on("restored")  # it has a file open by now that has no name
    image = unit.host.run("crctl", "--json", "checkpoint", UNIT, timeout=180).json()["Image"]
    unit.host.run("systemctl", "stop", unit.host.keeper_of(image))
    with unit.host.taken(before["pid"]):
        check_in("namespace", unit.crctl("restore").out, "where it is")
        unit.check_goes_on("in a namespace", before)
        unit.host.run("systemctl", "stop", UNIT)


MINIMAL = """#include <checkpointd/plugin.h>
#include <string.h>
#include <unistd.h>
static struct job {
    const struct ckptd_host *host;
    enum ckptd_purpose purpose;
} job;
static int minimal_open(const struct ckptd_host *host, enum ckptd_purpose purpose, struct ckptd_call *call, void **self) {
    (void)call;
    job = (struct job){host, purpose};
    *self = &job;
    return 0;
}
static void minimal_close(void *self) { (void)self; }
static int minimal_probe(void *self, const pid_t *pids, size_t count, struct ckptd_call *call) {
    (void)self, (void)pids, (void)call;
    return count > 0;
}
static int minimal_complete(void *self, struct ckptd_call *call) {
    char text[8] = "";
    const int fd = job.host->open_image(job.host->context, "minimal.txt");
    const ssize_t moved = job.purpose == CKPTD_CHECKPOINT ? write(fd, strcpy(text, "minimal"), 7) : read(fd, text, 7);
    (void)self;
    close(fd);
    if (moved == 7 && strcmp(text, "minimal") == 0)
        return 0;
    call->fail(call, CKPTD_SYSTEM, 0, "minimal.txt", "is not what was written", NULL);
    return -1;
}
static const char *const settings[] = {NULL};
static const struct ckptd_plugin minimal = {
    .size = sizeof(minimal), .abi = CKPTD_PLUGIN_ABI, .name = "minimal", .description = "A file", .settings = settings,
    .open = minimal_open, .close = minimal_close, .probe = minimal_probe, .complete = minimal_complete};
const struct ckptd_plugin *ckptd_plugin_entry(void) { return &minimal; }
"""


def build_minimal(folder):
    """By the installed header and what pkg-config says, as far away from the source as can be. Where it goes, and its bytes."""
    installed = harness.TOP / "build/testhost-layer"
    described = next(installed.rglob("checkpointd-plugin.pc"))
    ask = lambda what: harness.run_here("env", f"PKG_CONFIG_PATH={described.parent}", "pkg-config", what,
                                        f"--define-variable=prefix={installed}/usr", "checkpointd-plugin").out.split()
    strict = [*ask("--cflags"), "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    source, plugin = folder / "minimal.c", folder / "minimal.so"
    source.write_text(MINIMAL, "utf-8")
    (folder / "minimal.cc").write_text("#include <checkpointd/plugin.h>\n", "utf-8")
    harness.run_here("c++", "-std=c++17", *strict, "-fsyntax-only", str(folder / "minimal.cc"))
    harness.run_here("cc", "-std=c11", *strict, "-shared", "-fPIC", "-o", str(plugin), str(source))
    return f"{ask('--variable=plugindir')[0]}/minimal.so", plugin.read_bytes()


@case
def one_that_is_built_by_what_is_installed(t):
    host, unit = t.host(), "counter.service"
    with tempfile.TemporaryDirectory() as folder:
        place, plugin = build_minimal(pathlib.Path(folder))
    host.run("sh", "-c", f"base64 -d >{place}", input=base64.b64encode(plugin).decode())
    host.run("systemctl", "start", unit)
    pid = host.main_pid(unit)
    host.run("crctl", "checkpoint", unit)
    check_equal(host.sh(f"cat /var/lib/checkpointd/{unit}/*/minimal.txt").out, "minimal", "what it wrote")
    host.sh(f"mv {place} {place}.aside")
    check_in("plugin 'minimal'", host.run("crctl", "restore", unit, check=False).err, "a restore without it")
    host.sh(f"mv {place}.aside {place}")
    host.run("crctl", "restore", unit)
    check_equal(host.main_pid(unit), pid, "its PID")
    host.sh(f"rm {place}; systemctl stop {unit}")


harness.main()
