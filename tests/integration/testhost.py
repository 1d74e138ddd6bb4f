#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The test host itself: what every other integration test relies on."""
import os
import pathlib
import signal
import subprocess
import time

import harness
from harness import DEV, Failed, Host, case, check, check_equal, check_in, run_here, wait_for

STATE = pathlib.Path("/run/checkpointd-testhost")
CLOCKS = "import time; print(*(time.clock_gettime(c) for c in (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)))"


def traces_of(name):
    """Everything on this machine that belongs to the host of that name."""
    found = [str(path) for path in STATE.glob(f"*{name}*")]
    found += [line.split()[1] for line in open("/proc/mounts") if f"checkpointd-testhost/{name}" in line]
    for line in open("/proc/mounts"):
        kind, where = line.split()[2], pathlib.Path(line.split()[1])
        if kind == "cgroup2":
            found += [str(path) for path in (where / "checkpointd-testhost").glob(name)]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            text = pathlib.Path(f"/proc/{pid}/cgroup").read_text()
            line = pathlib.Path(f"/proc/{pid}/cmdline").read_text()
            state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state in "ZX":  # dead; its parent, on some machines a lazy PID 1, has not looked yet
            continue
        if f"checkpointd-testhost/{name}/" in text or f"testhost-owner-watch\0" in line and name in line:
            found.append(f"process {pid}: {line}")
    return found


def clocks(host):
    return [float(value) for value in host.run("python3", "-c", CLOCKS).out.split()]


@case
def systemd_runs_with_a_bus(t):
    host = t.host("a")
    check_equal(host.read("/proc/1/comm"), "systemd\n", "PID 1")
    check_equal(host.run("systemctl", "is-system-running").out, "running\n", "state of the system")
    check_equal(host.run("stat", "-f", "-c", "%T", "/sys/fs/cgroup").out, "cgroup2fs\n", "cgroup tree")
    answer = host.run("busctl", "call", "org.freedesktop.DBus", "/org/freedesktop/DBus",
                      "org.freedesktop.DBus", "NameHasOwner", "s", "org.freedesktop.systemd1").out
    check_equal(answer, "b true\n", "systemd on the system bus")


@case
def exec_passes_streams_and_exit_code(t):
    host = t.host("a")
    check_equal(host.run("sh", "-c", "exit 7", check=False).code, 7, "exit code")
    check_equal(host.run("cat", input="through\n").out, "through\n", "stdin to stdout")
    check_equal(host.run("sh", "-c", "echo aside >&2").err, "aside\n", "stderr")
    check_equal(host.run("sh", "-c", "kill -9 $$", check=False).code, 137, "death by a signal")
    check_equal(host.run("printf", "%s|", "a b", "$c", "").out, "a b|$c||", "arguments")
    group = host.run("cat", "/proc/self/cgroup").out
    check_in("0::/testhost-exec/", group, "cgroup of a command")


@case
def exec_is_in_the_hosts_time_namespace(t):
    host = t.host("a")
    inside = host.run("readlink", "/proc/self/ns/time", "/proc/1/ns/time").out.split()
    check_equal(inside[0], inside[1], "time namespace of a command")
    check(inside[0] != os.readlink("/proc/self/ns/time"), "time namespace differs from the machine's")


@case
def a_killed_exec_takes_its_command_along(t):
    host = t.host("a")
    child = subprocess.Popen([DEV, "testhost", "exec", host.name, "--", "sleep", "4711"],
                             start_new_session=True)
    running = lambda: host.run("pgrep", "-fx", "sleep 4711", check=False).code == 0
    wait_for(running, "the command runs")
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    wait_for(lambda: not running(), "the command is gone")


@case
def two_hosts_side_by_side(t):
    first, second = t.host("a"), t.host("b")
    for host in (first, second):
        host.write("/var/tmp/mine", host.name)
        host.run("systemd-run", "--unit=same-name", "sleep", "1000")
    for host in (first, second):
        check_equal(host.read("/var/tmp/mine"), host.name, "a file of its own")
        check_equal(host.run("hostname").out.strip(), host.name, "host name")
        check_equal(host.unit("same-name.service")["ActiveState"], "active", "a unit of its own")
    first.run("systemctl", "stop", "same-name.service")
    check_equal(second.unit("same-name.service")["ActiveState"], "active", "the other host's unit")
    ids = {host.read("/etc/machine-id") for host in (first, second)}
    check_equal(len(ids), 2, "machine ids differ")


def check_reboot(host, crash):
    host.write("/var/tmp/kept", "still here")
    host.write("/run/lost", "x")
    host.write("/tmp/lost", "x")
    boot_id = host.read("/proc/sys/kernel/random/boot_id")
    time.sleep(max(0.0, 6 - clocks(host)[0]))
    before = clocks(host)
    began = time.monotonic()
    host.reboot(crash=crash)
    after = clocks(host)
    took = time.monotonic() - began
    limit = 4 + took  # they start at 3
    check(0 < after[0] < limit and 0 < after[1] < limit, "clocks start anew near zero", (after, limit))
    check(after[0] < before[0] + took - 1 and after[1] < before[1] + took - 1, "clocks went back", (before, after, took))
    new_id = host.read("/proc/sys/kernel/random/boot_id")
    check(new_id != boot_id, "boot id differs", new_id)
    check_in(new_id.strip().replace("-", ""), host.run("journalctl", "--list-boots", "--no-pager").out,
             "the journal knows the new boot")
    check_equal(host.read("/var/tmp/kept"), "still here", "a file on disk")
    check(not host.exists("/run/lost") and not host.exists("/tmp/lost"), "/run and /tmp are empty")
    check_equal(host.run("systemctl", "is-system-running").out, "running\n", "state after the reboot")


@case
def reboot_shifts_clocks_and_keeps_the_disk(t):
    check_reboot(t.host("a"), crash=False)


@case
def a_crash_is_a_reboot_without_a_shutdown(t):
    check_reboot(t.host("a"), crash=True)


@case
def a_clean_reboot_stops_units(t):
    host = t.host("a")
    host.write("/etc/systemd/system/last-words.service", """[Service]
ExecStart=sleep infinity
ExecStop=touch /var/tmp/stopped
""")
    host.sh("systemctl daemon-reload; systemctl start last-words; rm -f /var/tmp/stopped")
    host.reboot()
    check(host.exists("/var/tmp/stopped"), "ExecStop= ran at the shutdown")
    host.sh("systemctl start last-words; rm -f /var/tmp/stopped")
    host.reboot(crash=True)
    check(not host.exists("/var/tmp/stopped"), "a crash stops nothing properly")


@case
def nothing_is_left_after_down(t):
    host = Host("testhost-gone").up()
    t.on_end(host.down)
    host.run("systemd-run", "--unit=frozen", "sleep", "1000")
    host.run("systemctl", "freeze", "frozen.service")
    check(traces_of(host.name), "the host leaves traces while it is up")
    host.down()
    check_equal(traces_of(host.name), [], "traces after down")
    host.down()  # once more: nothing to do is no error


@case
def a_killed_up_is_cleaned_away(t):
    host = Host("testhost-killed")
    t.on_end(host.down)
    delays = [n / 40 for n in range(1, 61)] if harness.SOAK else (0.05, 0.2, 0.4, 0.8)
    for delay in delays:
        child = subprocess.Popen([DEV, "testhost", "up", host.name, "--no-build"],
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        child.kill()
        child.wait()
        host.down()
        check_equal(traces_of(host.name), [], f"traces after kill -9 of up {delay} s into it, and down")
    child = subprocess.Popen([DEV, "testhost", "up", host.name, "--no-build"],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.3)
    child.kill()
    child.wait()
    host.up()
    check_equal(host.run("systemctl", "is-system-running").out, "running\n", "up over a stale host")
    host.down()
    check_equal(traces_of(host.name), [], "traces in the end")


@case
def a_host_goes_down_with_its_owner(t):
    host = Host("testhost-orphan")
    t.on_end(host.down)
    owner = subprocess.Popen(["sleep", "1000"])
    run_here(DEV, "testhost", "up", host.name, "--no-build", "--owner", str(owner.pid), timeout=600)
    check(traces_of(host.name), "the host is up")
    owner.kill()
    owner.wait()
    wait_for(lambda: not traces_of(host.name), "the host is gone with its owner")


@case
def errors_are_told(t):
    for arguments in (["exec", "testhost-none", "--", "true"], ["reboot", "testhost-none"], ["up", "Bad/Name"]):
        outcome = run_here(DEV, "testhost", *arguments, check=False)
        check(outcome.code != 0 and outcome.err, f"{arguments} fails with a message", outcome)


harness.main()
