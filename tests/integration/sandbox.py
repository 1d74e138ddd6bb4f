#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sandboxed services: options by themselves and all at once go to disk, through a reboot and come back.

What they see of their sandbox they tell themselves (tests/services/sandbox_probe.cc), before and after.
"""
import harness
from harness import case, check, check_equal, check_in, wait_for

PROBE = "/usr/libexec/checkpointd-tests/sandbox-probe"

# What the probe's "narrow" mode needs to be started and to count, and nothing more.
NARROW = ("SystemCallFilter=read pread64 pwrite64 close mmap mprotect munmap brk access openat fstat newfstatat "
          "arch_prctl set_tid_address set_robust_list prlimit64 getrandom rseq clock_nanosleep futex")

OPTIONS = {
    "users": "PrivateUsers=yes",
    "users-nobody": "PrivateUsers=yes\nUser=nobody\nSupplementaryGroups=games\nPrivateTmp=yes",
    "users-able": "PrivateUsers=yes\nUser=daemon\nAmbientCapabilities=CAP_NET_BIND_SERVICE CAP_CHOWN\n"
                  "CapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_CHOWN CAP_KILL",
    "users-scheduled": "PrivateUsers=yes\nUser=nobody\nNice=-7\nIOSchedulingClass=realtime\nCPUAffinity=0\n"
                       "OOMScoreAdjust=250\nLimitNOFILE=300:400\nTimerSlackNSec=1ms\nUMask=0027",
    "network": "PrivateNetwork=yes",
    "network-joined": "PrivateNetwork=yes\n[Unit]\nJoinsNamespaceOf=sandbox-network.service",
    "ipc": "PrivateIPC=yes",
    "hostname": "ProtectHostname=yes",
    "proc": "ProtectProc=invisible\nProcSubset=pid\nUser=nobody",
    "devices": "PrivateDevices=yes",
    "tmp": "PrivateTmp=yes\nUser=nobody",
    "dynamic": "DynamicUser=yes",
    "system": "ProtectSystem=strict\nProtectHome=tmpfs",
    "paths": "TemporaryFileSystem=/opt\nBindReadOnlyPaths=/etc:/mnt\nInaccessiblePaths=/root\nReadOnlyPaths=/var/log",
    "exec-paths": f"NoExecPaths=/\nExecPaths={PROBE} /usr/lib",
    "kernel": "ProtectKernelTunables=yes\nProtectKernelModules=yes\nProtectKernelLogs=yes\nProtectClock=yes\n"
              "ProtectControlGroups=yes",
    "capabilities": "CapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_SETPCAP\nSecureBits=noroot",
    "ambient": "User=nobody\nAmbientCapabilities=CAP_NET_BIND_SERVICE\nNoNewPrivileges=yes",
    "calls": "SystemCallFilter=@system-service\nSystemCallErrorNumber=EPERM\nSystemCallArchitectures=native",
    "calls-denied": "SystemCallFilter=~@mount @reboot rt_sigtimedwait\nUser=nobody",
    "families": "RestrictAddressFamilies=none",
    "unix-only": "RestrictAddressFamilies=AF_UNIX",
    "restricted": "RestrictNamespaces=yes\nRestrictRealtime=yes\nRestrictSUIDSGID=yes\nLockPersonality=yes",
    "write-or-execute": "MemoryDenyWriteExecute=yes",
    "resources": "Nice=-5\nIOSchedulingClass=idle\nCPUAffinity=0\nCPUSchedulingPolicy=batch\nOOMScoreAdjust=300\n"
                 "UMask=0077\nTimerSlackNSec=1ms\nLimitNOFILE=1000:2000\nLimitCORE=0\nLimitMEMLOCK=1M",
    "credentials": "SetCredential=secret:hush\nKeyringMode=private\nDynamicUser=yes",
    "log": "StandardOutput=append:/var/log/sandbox-log\nStandardError=inherit\nPrivateTmp=yes",
    "narrow": NARROW + "\nRestrictAddressFamilies=none",
    "narrow-users": NARROW + "\nRestrictAddressFamilies=none\nPrivateUsers=yes\nUser=nobody\nNoNewPrivileges=yes",
}
OPTIONS["all"] = """DynamicUser=yes
PrivateUsers=yes
PrivateNetwork=yes
PrivateIPC=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectSystem=strict
ProtectHome=yes
ProtectProc=invisible
ProcSubset=pid
ProtectHostname=yes
ProtectClock=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
SystemCallFilter=@system-service
SystemCallFilter=~@resources
SystemCallErrorNumber=EPERM
SystemCallArchitectures=native
MemoryDenyWriteExecute=yes
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET
NoExecPaths=/
ExecPaths=%s /usr/lib
RuntimeDirectory=sandbox-all
LimitNOFILE=500:600
Nice=4
OOMScoreAdjust=100
UMask=0077
IOSchedulingClass=idle
CPUAffinity=0
SetCredential=secret:hush
RemoveIPC=yes""" % PROBE

# "all" has most of the others; without `soak` those stand by themselves that are not like them.
SINGLY = [name for name in OPTIONS if harness.SOAK or name in (
    "users-nobody", "users-able", "users-scheduled", "network", "network-joined", "dynamic", "paths", "exec-paths",
    "calls-denied", "families", "capabilities", "resources", "log", "narrow", "narrow-users", "all")]


def unit_of(name):
    return f"sandbox-{name}.service"


def install(host, options, program=PROBE):
    for name, lines in options.items():
        mode = "narrow" if name.startswith("narrow") else ""
        host.write(f"/etc/systemd/system/{unit_of(name)}",
                   f"[Service]\nExecStart={program} %S/sandbox-{name} {mode}\nStateDirectory=sandbox-{name}\n{lines}\n")
    host.run("systemctl", "daemon-reload")


def for_all(host, verb, names):
    """Runs `verb UNIT` for all, four at a time; what failed is told at once."""
    units = "\n".join(unit_of(name) for name in names)
    outcome = host.run("xargs", "-P4", "-I{}", "sh", "-c", f"{verb} {{}} >/run/{{}}.out 2>&1 || {{ echo {{}}:; cat "
                       "/run/{}.out; journalctl -b -n 5 --no-pager -u {}; } | sed -z 's/\\n/\\n  /g'", input=units, timeout=600)
    check_equal(outcome.out, "", f"{verb}: those that failed")


def reports(host, names):
    """What each unit's program says of itself: its facts, and how far it has counted."""
    out = host.sh("for f in /var/lib/sandbox-*/; do echo \"@ $(basename $f)\"; cat $f/report 2>/dev/null || true; done").out
    told = {}
    for part in out.split("@ sandbox-")[1:]:
        name, *lines = part.splitlines()
        counts = [int(n) for line in lines if line.startswith("count ") for n in line.split()[1:]]
        facts = [line for line in lines if not line.startswith("count ")]
        # Without a /tmp of its own, what is there is not the unit's.
        if "PrivateTmp=yes" not in OPTIONS.get(name, "") and "DynamicUser=yes" not in OPTIONS.get(name, ""):
            facts = [line for line in facts if not line.startswith("mark ")]
        told[name] = (facts, counts)
    return {name: told.get(name, ([], [])) for name in names}


def wait_counting(host, names, above, when):
    """Until every thread of every unit has counted on beyond `above`; returns what they say then."""
    seen = {}

    def late():
        seen.update(reports(host, names))
        return [name for name in names
                if not seen[name][1] or min(seen[name][1]) < 3 or
                any(now <= before for now, before in zip(seen[name][1], above.get(name, ([], []))[1]))]
    try:
        wait_for(lambda: not late(), f"{when}: all count on", 120, 0.5)
    except harness.Failed as failed:
        raise harness.Failed(f"{failed}\n  late: {late()}") from failed
    return seen


def check_facts(before, now, name, when):
    changed = sorted(set(before[name][0]) ^ set(now[name][0]))
    check_equal(changed, [], f"{unit_of(name)}, {when}: what differs inside")


@case
def each_option_and_all_of_them_through_a_reboot(t):
    host = t.host()
    names = SINGLY
    install(host, OPTIONS)
    for_all(host, "systemctl start", names)
    before = wait_counting(host, names, {}, "started")
    pids = {name: host.main_pid(unit_of(name)) for name in ("all", "users-able")}
    for_all(host, "crctl checkpoint", names)
    down = reports(host, names)
    for name in names:
        check_facts(before, down, name, "up to the checkpoint")
    host.reboot()
    for_all(host, "crctl restore", names)
    now = wait_counting(host, names, down, "restored")
    for name in names:
        check_facts(before, now, name, "restored")
    for name, pid in pids.items():
        check_equal(host.main_pid(unit_of(name)), pid, f"{unit_of(name)}: its main PID")
    check_equal(host.run("systemctl", "--failed", "--plain", "--no-legend").out, "", "failed units")


@case
def a_second_image_of_them(t):
    """Taken of what the first restore made; several times in the long version."""
    host = t.host()
    names = ["all", "users-able", "users-scheduled", "network-joined", "narrow-users"]
    for turn in range(10 if harness.SOAK else 1):
        before = reports(host, names)
        for_all(host, "crctl checkpoint", names)
        down = reports(host, names)
        for_all(host, "crctl restore", names)
        now = wait_counting(host, names, down, f"turn {turn}")
        for name in names:
            check_facts(before, now, name, f"turn {turn}")


@case
def suspended_in_place(t):
    """Nothing of the sandbox is made anew, and none of it is missed by what goes on in it."""
    host = t.host()
    names = SINGLY if harness.SOAK else ["all", "users-nobody", "users-able", "users-scheduled", "narrow-users"]
    install(host, OPTIONS)
    for_all(host, "systemctl start", names)
    before = wait_counting(host, names, reports(host, names), "before a suspension")
    for_all(host, "crctl checkpoint --mode suspend", names)
    down = reports(host, names)
    for_all(host, "crctl restore", names)
    now = wait_counting(host, names, down, "resumed")
    for name in names:
        check_facts(before, now, name, "resumed")


@case
def they_stop_as_units_do(t):
    host = t.host()
    for_all(host, "systemctl stop", SINGLY)
    for name in SINGLY:
        check_equal(host.unit(unit_of(name), "NRestarts")["NRestarts"], "0", f"{unit_of(name)}: cold starts")


@case
def a_changed_user_namespace_is_refused(t):
    host = t.host()
    for_all(host, "systemctl start", ["users"])
    wait_counting(host, ["users"], {}, "started")
    image = host.run("crctl", "--json", "checkpoint", unit_of("users")).json()["Image"]
    host.drop_in(unit_of("users"), "[Service]\nPrivateUsers=no\n")
    for target, why in ((unit_of("users"), "is part of the unit since"), (image, "PrivateUsers=")):
        refused = host.run("crctl", "restore", target, check=False)
        check(refused.code != 0, f"{target} refused", refused)
        check_in(why, refused.err, f"what it says of {target}")
        check_equal(host.unit(unit_of("users"))["ActiveState"], "inactive", f"after the refusal of {target}")
    host.run("rm", f"/etc/systemd/system/{unit_of('users')}.d/test.conf")
    host.run("systemctl", "daemon-reload")
    host.run("crctl", "restore", image)


@case
def what_is_not_carried_is_named(t):
    """Before anything has changed."""
    host = t.host()
    install(host, {"own-network": "", "own-users": "PrivateTmp=yes"}, "")
    for name, flag in (("own-network", "-n"), ("own-users", "-Ur")):
        host.drop_in(unit_of(name), f"[Service]\nExecStart=\nExecStart=/usr/bin/unshare {flag} {PROBE} %S/sandbox-{name}\n")
    names = ["own-network", "own-users"]
    for_all(host, "systemctl start", names)
    before = wait_counting(host, names, {}, "started")
    for name, word in (("own-network", "made itself a net namespace"), ("own-users", "made itself a user namespace")):
        pid = host.main_pid(unit_of(name))
        refused = host.run("crctl", "checkpoint", unit_of(name), check=False)
        check_equal(refused.code, 6, f"{name}: {refused.err}")
        check_in(word, refused.err, f"{name}: what it says")
        check_equal(host.main_pid(unit_of(name)), pid, f"{name}: its main PID")
    wait_counting(host, names, before, "refused")


harness.main()
