#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""PIDs of an image have other owners by now: where the policy says so, the unit gets a PID namespace.

What its program sees of its numbers is looked at from inside, what systemd does with it from outside.
"""
import harness
from counter_watch import CounterWatch
from harness import case, check, check_equal, check_in, wait_for

COUNTER = "counter.service"
PROBE = "/usr/libexec/checkpointd-tests/sandbox-probe"
SANDBOX = {
    "tunables": "ProtectKernelTunables=yes\nProtectKernelLogs=yes\nProtectControlGroups=yes",
    "hidden": "ProtectProc=invisible\nProcSubset=pid\nUser=nobody",
    "strict": "DynamicUser=yes\nPrivateNetwork=yes\nPrivateIPC=yes\nPrivateTmp=yes\nPrivateDevices=yes\n"
              "ProtectSystem=strict\nProtectProc=invisible\nProtectKernelTunables=yes\nNoNewPrivileges=yes\n"
              "RestrictNamespaces=yes\nSystemCallFilter=@system-service\nSystemCallErrorNumber=EPERM\n"
              "InaccessiblePaths=/proc/interrupts",
}
DAEMON = """import os, time
def count(path):
    n = 0
    while True:
        n += 1
        with open(path + ".new", "w") as file: file.write(f"{n} {os.getpid()} {os.getppid()}")
        os.rename(path + ".new", path)
        time.sleep(0.1)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: count("/run/daemon/orphan")  # its father ends, so it is nobody's child
    if os.fork() == 0:
        with open("/run/daemon/pid", "w") as file: file.write(f"{os.getpid()}\\n")
        if os.fork() == 0: count("/run/daemon/child")
        count("/run/daemon/main")
    os._exit(0)
while not os.path.exists("/run/daemon/child"): time.sleep(0.01)
"""


def host_of(t):
    """The host, on which the policy allows namespaces."""
    host = t.host()
    policy = "/etc/checkpointd/policy.d/pids.yaml"
    if not host.exists(policy):
        host.write(policy, 'units: {"*": {pid-taken: namespace}}\n')
        host.run("crctl", "policy", "reload")
    return host


def fresh_counter(host):
    host.sh(f"systemctl stop {COUNTER}; rm -rf /var/lib/counter/* /var/log/counter/*")
    counter = CounterWatch(host)
    counter.start()
    return counter


def checkpoint(host, unit):
    """Takes it down, and leaves its PIDs to whoever wants them."""
    image = host.run("crctl", "--json", "checkpoint", unit).json()["Image"]
    host.run("systemctl", "stop", host.keeper_of(image))


def inner_numbers(host, pid):
    """Of all threads of a process, as the innermost namespace has them."""
    lines = host.sh(f"grep -h ^NSpid /proc/{pid}/task/*/status").out.splitlines()
    return sorted(int(line.split()[-1]) for line in lines)


def check_nothing_left(host, unit):
    check_equal(host.sh("pgrep -x pid-init || true").out, "", f"{unit}: its namespace's first process")
    check(not host.exists(f"/sys/fs/cgroup/system.slice/{unit}"), f"{unit}: its cgroup is gone")


def check_prompt_stop(host, unit):
    """systemd waits for nobody: its default is 90 s."""
    stop = host.run("systemctl", "stop", unit)
    check(stop.seconds < 60, f"{unit}: its stop is prompt", stop.seconds)
    check_equal(host.unit(unit, "Result", "ActiveState"), {"Result": "success", "ActiveState": "inactive"}, unit)
    check_nothing_left(host, unit)


def check_counter_inside(host, counter, before):
    wait_for(lambda: counter.state()["updates"] > before["updates"], "it reports again")
    now = counter.state()
    for key in ("pid", "consumer", "threads"):
        check_equal(now[key], before[key], f"{key}, as the program sees it")
    counter.check_alive("in its namespace")
    main = host.main_pid(COUNTER)
    check(main != before["pid"], "systemd has the outer number", main)
    check_equal(inner_numbers(host, main), sorted(before["threads"].values()), "threads of the main process")
    check_equal(host.read(f"/proc/{main}/root/proc/{before['pid']}/comm"), "counter\n", "its /proc knows it by the old PID")
    check_equal(host.read(f"/proc/{main}/root/proc/1/comm"), "pid-init\n", "PID 1 inside")
    return main


@case
def not_while_they_are_free(t):
    """Without that word in the policy it is refused: faults.py."""
    host = host_of(t)
    counter = fresh_counter(host)
    before = counter.state()
    checkpoint(host, COUNTER)
    done = host.run("crctl", "restore", COUNTER)
    check("namespace" not in done.out, "with free PIDs there is no namespace", done.out)
    check_equal(host.main_pid(COUNTER), before["pid"], "its main PID")


@case
def the_counter_in_a_namespace(t):
    host = host_of(t)
    host.drop_in(COUNTER, "[Service]\nRestart=on-failure\nRestartSec=100ms\n")
    counter = fresh_counter(host)
    checkpoint(host, COUNTER)
    before = counter.state()
    lines = len(host.journal(COUNTER))
    with host.taken(before["pid"], max(before["threads"].values())):
        done = host.run("crctl", "restore", COUNTER)
    check_in(f": pid {before['pid']} is taken by sleep, in /system.slice/taker-{before['pid']}.service", done.out,
             "why it is in a namespace")
    main = check_counter_inside(host, counter, before)
    check_in(f"main PID {main},", done.out, "its PID for the administrator")
    wait_for(lambda: any(entry.get("_PID") == str(main) for entry in host.journal(COUNTER)[lines:]),
             "its lines in the journal")
    host.run("kill", "-SEGV", str(main))
    wait_for(lambda: host.unit(COUNTER)["NRestarts"] == "1" and host.unit(COUNTER)["ActiveState"] == "active",
             "its crash is noticed, and it is started anew")
    cold = host.main_pid(COUNTER)
    check_equal(inner_numbers(host, cold)[0], cold, "the cold copy is in no namespace")
    check_equal(host.sh("pgrep -x pid-init || true").out, "", "nothing is left of the namespace")
    host.run("systemctl", "stop", COUNTER)
    host.sh(f"rm /etc/systemd/system/{COUNTER}.d/test.conf; systemctl daemon-reload")


@case
def a_sandbox_stays_as_closed_as_it_was(t):
    """What the program sees of its sandbox; of the processes that it sees there are fewer."""
    host = host_of(t)
    some = SANDBOX if harness.SOAK else {"strict": SANDBOX["strict"]}
    for name, lines in some.items():
        host.write(f"/etc/systemd/system/pids-{name}.service",
                   f"[Service]\nExecStart={PROBE} %S/pids-{name}\nStateDirectory=pids-{name}\n{lines}\n")
    host.run("systemctl", "daemon-reload")
    units = [f"pids-{name}.service" for name in some]
    host.run("systemctl", "start", *units)

    def report(unit):
        text = host.read(f"/var/lib/{unit.removesuffix('.service')}/report")
        facts = [line for line in text.splitlines() if not line.startswith(("count ", "sees "))]
        return facts, [int(n) for line in text.splitlines() if line.startswith("count ") for n in line.split()[1:]]

    for unit in units:
        wait_for(lambda: host.exists(f"/var/lib/{unit.removesuffix('.service')}/report") and min(report(unit)[1]) > 3,
                 f"{unit} counts")
        pid = host.main_pid(unit)
        checkpoint(host, unit)
        facts, counts = report(unit)
        with host.taken(pid):
            check_in("namespace", host.run("crctl", "restore", unit).out, f"{unit}: where it is")
        wait_for(lambda: all(now > then for now, then in zip(report(unit)[1], counts, strict=True)),
                 f"{unit} counts on")
        check_equal(sorted(set(report(unit)[0]) ^ set(facts)), [], f"{unit}: what differs inside")
        main = host.main_pid(unit)
        check_equal(inner_numbers(host, main)[0], pid, f"{unit}: its PID inside")
        below = "awk '$5 ~ \"^/proc/\" {print $5, $6}' /proc/%d/mountinfo | sort"
        on_proc = host.sh(below % main).out
        check(unit == "pids-hidden.service" or "/proc/sys ro" in on_proc, f"{unit}: what lies on its /proc", on_proc)
        check_prompt_stop(host, unit)


@case
def a_forking_daemon(t):
    """Several roots, and a PID file, which is for those outside."""
    host = host_of(t)
    host.write("/usr/local/lib/daemon.py", DAEMON)
    host.write("/etc/systemd/system/daemon.service",
               "[Service]\nType=forking\nExecStart=/usr/bin/python3 /usr/local/lib/daemon.py\nPIDFile=/run/daemon/pid\n"
               "RuntimeDirectory=daemon\n")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", "daemon.service")
    names = ("main", "child", "orphan")

    def said():
        return {name: [int(word) for word in host.read(f"/run/daemon/{name}").split()] for name in names}

    wait_for(lambda: host.exists("/run/daemon/orphan"), "its orphan counts")
    last = said()
    checkpoint(host, "daemon.service")
    with host.taken(last["main"][1]):
        host.run("crctl", "restore", "daemon.service")
    wait_for(lambda: all(said()[name][0] > last[name][0] for name in names), "all three count on")
    now = said()
    for name in names:
        check_equal(now[name][1], last[name][1], f"{name}: getpid()")
    check_equal(now["main"][2], 0, "main: getppid() is none that it could see")
    check_equal(now["child"][2], last["child"][2], "child: getppid()")
    check_equal(int(host.read("/run/daemon/pid")), host.main_pid("daemon.service"), "the PID file")
    last = said()
    checkpoint(host, "daemon.service")
    host.run("crctl", "restore", "daemon.service")
    wait_for(lambda: all(said()[name][0] > last[name][0] for name in names), "all three count on, out of it again")
    for name in names:
        check_equal(said()[name][1], last[name][1], f"{name}: getpid() out of it again")
    main = host.main_pid("daemon.service")
    check_equal([main, int(host.read("/run/daemon/pid"))], [last["main"][1]] * 2, "the main PID, and the PID file")
    host.run("kill", str(main))
    wait_for(lambda: host.unit("daemon.service")["ActiveState"] == "inactive", "the end of the main process ends all")
    check_nothing_left(host, "daemon.service")


@case
def at_the_gate(t):
    host = host_of(t)
    counter = fresh_counter(host)
    host.run("crctl", "enable", COUNTER)
    checkpoint(host, COUNTER)
    before = counter.state()
    with host.taken(before["pid"]):
        host.run("systemctl", "start", COUNTER)
    check_counter_inside(host, counter, before)
    host.run("crctl", "disable", COUNTER)


@case
def from_a_namespace_to_disk(t):
    """And back, into another one; of a unit that goes on; and to where its numbers are free."""
    host = host_of(t)
    counter = fresh_counter(host)
    pid = counter.state()["pid"]
    checkpoint(host, COUNTER)
    with host.taken(pid):
        for turn in range(2):
            host.run("crctl", "restore", COUNTER)
            refused = host.run("crctl", "checkpoint", "--mode", "suspend", COUNTER, check=False)
            check_equal(refused.code, 6, refused.err)
            check_in("PID namespace", refused.err, "why")
            before = counter.state()
            host.run("crctl", "checkpoint", "--mode", "snapshot", COUNTER)
            main = check_counter_inside(host, counter, before)
            before = counter.state()
            checkpoint(host, COUNTER)
            check_nothing_left(host, COUNTER)
            shown = host.run("crctl", "--json", "list", COUNTER).json()
            check(main not in [image.get("MainPid") for image in shown], "the number of the outside is in no image", shown)
    before = counter.state()
    host.run("crctl", "restore", COUNTER)
    check_equal(host.main_pid(COUNTER), pid, "its PID, by now free")
    wait_for(lambda: counter.state()["updates"] > before["updates"], "it reports again")
    for key in ("pid", "consumer", "threads"):
        check_equal(counter.state()[key], before[key], f"{key}, as the program sees it")
    counter.check_alive("out of the namespace")
    check_prompt_stop(host, COUNTER)


@case
def a_user_namespace_is_in_the_way(t):
    host = host_of(t)
    host.drop_in(COUNTER, "[Service]\nPrivateUsers=yes\n")
    counter = fresh_counter(host)
    checkpoint(host, COUNTER)
    pid = counter.state()["pid"]
    with host.taken(pid):
        refused = host.run("crctl", "restore", COUNTER, check=False)
        check_equal(refused.code, 4, refused.err)
        for part in (f"/taker-{pid}.service", "PrivateUsers"):
            check_in(part, refused.err, "what it says")
    check_nothing_left(host, COUNTER)


harness.main()
