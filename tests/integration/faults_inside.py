#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs inside a test host for faults.py: requests as lines of JSON on stdin, as many answers on stdout.

It stays: to come into a host and to start Python takes longer than to look at a unit.
"""
import glob
import json
import os
import signal
import subprocess
import sys
import time
import zlib

LIBEXEC = "/usr/libexec/checkpointd/"
JOBS = "/run/checkpointd/jobs"
STORE = "/var/lib/checkpointd"
DROP_IN = "zz-checkpointd.conf"
STATUS = ("TracerPid", "SigBlk", "SigIgn", "SigCgt", "NoNewPrivs", "Seccomp", "Uid", "CapEff")
UNIT = ("LoadState", "ActiveState", "SubState", "Result", "MainPID", "NRestarts", "DropInPaths",
        "NeedDaemonReload", "InvocationID")


def read(path, default=""):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return default


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return {"code": done.returncode, "out": done.stdout, "err": done.stderr}


def fields(text, names):
    table = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {name: table.get(name, "").strip() for name in names}


def executable_bytes(pid, maps):
    """A checksum of all that can be executed: a stub that was left behind would show."""
    total = 0
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps.splitlines():
            span, permissions = line.split()[:2]
            if "x" not in permissions or line.endswith("[vsyscall]"):
                continue
            begin, end = (int(part, 16) for part in span.split("-"))
            memory.seek(begin)
            total = zlib.crc32(memory.read(end - begin), total)
    return total


def link(path):
    try:
        return os.readlink(path)
    except OSError:
        return ""


def descriptors(pid):
    """Those that stay. The counter writes its state aside, into NAME.new, now and then: that one comes and goes,
    and may be closed between the listing and the look."""
    found = {fd: link(f"/proc/{pid}/fd/{fd}") for fd in sorted(os.listdir(f"/proc/{pid}/fd"), key=int)}
    return {fd: target for fd, target in found.items() if target and not target.endswith(".new")}


def process(pid):
    maps = read(f"/proc/{pid}/maps")
    threads = {}
    for tid in os.listdir(f"/proc/{pid}/task"):
        status = read(f"/proc/{pid}/task/{tid}/status")
        threads[tid] = fields(status, STATUS) | {"State": fields(status, ("State",))["State"][:1]}
    return {"maps": maps.splitlines(), "code": executable_bytes(pid, maps), "threads": threads,
            "fds": descriptors(pid)}


def processes_of(group):
    """Those of a cgroup, by PID; what ends while it is looked at is not there."""
    found = {}
    for pid in read(group + "/cgroup.procs").split():
        try:
            found[pid] = process(pid)
        except OSError:
            pass
    return found


def is_killed(pid):
    """A copy of a snapshot is, with its worker, and ends as soon as a CPU is free; it will not run again."""
    pending = [line.split()[1] for line in read(f"/proc/{pid}/status").splitlines()
               if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(int(mask, 16) & 1 << signal.SIGKILL - 1 for mask in pending)


def all_processes(unit, jobs, mark):
    """Stage helpers and workers of the unit, which should not be there, the processes of its program, and the
    images whose PIDs are reserved, with the name of what holds them."""
    ours, copies, reserved = [], [], []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        words = read(f"/proc/{pid}/cmdline").split("\0")
        exe = link(f"/proc/{pid}/exe").removesuffix(" (deleted)")
        cgroup = read(f"/proc/{pid}/cgroup")
        in_unit = f"/{unit}\n" in cgroup
        if "/checkpointd-pids@" in cgroup and words[1:2] and words[1].startswith(unit + "/"):
            reserved.append(words[1].split("/")[1] + " " + read(f"/proc/{pid}/comm").strip())
        in_job = any(f"{JOBS}/{job}" in words for job in jobs)
        if exe.startswith(LIBEXEC) and (in_unit or in_job):
            ours.append(" ".join([pid, *words]))
        if mark in words and not is_killed(pid):
            copies.append(int(pid))
    return ours, sorted(copies), sorted(reserved)


def jobs_of(unit):
    """Of each job of the unit: whether it has ended, and whether something is left to undo."""
    found = {}
    for folder in glob.glob(JOBS + "/*"):
        try:
            request = json.loads(read(folder + "/request.json", "{}"))
        except ValueError:
            request = {}
        if request.get("unit") == unit:
            found[os.path.basename(folder)] = {"ended": os.path.exists(folder + "/result.json"),
                                               "undo": os.path.exists(folder + "/undo")}
    return found


def steps_of(job):
    result = json.loads(read(f"{JOBS}/{job}/result.json", "{}"))
    return [step["step"] for step in result.get("steps", [])]


def images_of(unit):
    folder = f"{STORE}/{unit}"
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return {name: json.loads(read(f"{folder}/{name}/checkpointd-state", "{}")).get("state", "?")
            for name in names}


def await_last_looks(unit, seconds=60):
    """Of a job that has ended PID 1 asks, in its own time, whether something is left to undo. Its cgroup is there
    until that has been done."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended = [job for job, state in jobs_of(unit).items() if state["ended"]]
        cgroups = {name for _, names, _ in os.walk("/sys/fs/cgroup") for name in names}
        if not any(f"checkpointd-job-{job}.service" in cgroups for job in ended) and \
                not any("recover" in process.split() for process in all_processes(unit, ended, "")[0]):
            return
        time.sleep(0.02)


def look(unit, mark):
    """Everything about a unit; `mark` is a word of its processes' command lines."""
    await_last_looks(unit)
    out = run("systemctl", "show", unit, "-p", ",".join(UNIT))["out"]
    shown = dict(line.split("=", 1) for line in out.splitlines())
    group = (glob.glob(f"/sys/fs/cgroup/system.slice/**/{unit}", recursive=True) + ["/nowhere"])[0]
    processes = processes_of(group)
    jobs = jobs_of(unit)
    ours, copies, reserved = all_processes(unit, jobs, mark)
    return {"unit": shown, "pids": [int(pid) for pid in processes], "processes": processes,
            "cgroup": os.path.exists(group), "freeze": read(group + "/cgroup.freeze").strip(),
            "events": read(group + "/cgroup.events").split(),
            "drop_ins": [path for path in glob.glob("/run/systemd/**/" + DROP_IN, recursive=True)
                         if f"/{unit}.d/" in path],
            "ours": ours, "copies": copies, "reserved": reserved, "jobs": jobs, "images": images_of(unit)}


def load(path):
    return json.loads(read(path, "{}") or "{}")


def counter_now(folder):
    log = [int(line) for line in read(folder + "/counter.log").splitlines()]
    return {"state": load(folder + "/state.json"), "consumer": load(folder + "/consumer.json"),
            "log": len(log), "log_sound": log == list(range(1, len(log) + 1))}


def counter(folder, seconds=60):
    """What the counter says of itself once every part of it has moved; `moves` tells whether that came."""
    before = counter_now(folder)
    deadline = time.monotonic() + seconds
    parts = ("updates", "count", "expirations", "sent", "timer_signals")
    while True:
        now = counter_now(folder)
        state, consumer = now["state"], now["consumer"]
        still = [part for part in parts if state.get(part, 0) <= before["state"].get(part, 0)]
        if consumer.get("received", 0) <= before["consumer"].get("received", 0):
            still.append("received")
        if not still or time.monotonic() > deadline:
            return now | {"still": still}
        time.sleep(0.02)


def answer(request):
    reply = {}
    if "crctl" in request:
        reply["crctl"] = run("crctl", *request["crctl"])
    if "look" in request:
        reply["look"] = look(request["look"], request["mark"])
    if "counter" in request:
        reply["counter"] = counter(request["counter"])
    if "counter_now" in request:
        reply["counter"] = counter_now(request["counter_now"])
    if "steps" in request:
        reply["steps"] = steps_of(request["steps"])
    return reply


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
