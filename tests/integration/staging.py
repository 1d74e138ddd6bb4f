#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Stopping and staging a unit, with a death and with a failure at each step on the way.

The engine is a stand-in (tests/units/staging_driver.cc): what is proved here is that systemd and the unit
are left in one of two states, whatever happens: running with the main process they had, or cleanly down.
"""
import random
import shlex
import time

import harness
from harness import SOAK, case, check, check_equal, check_in, wait_for

DRIVER = "/usr/libexec/checkpointd-tests/staging-driver"
HELPER = "/usr/libexec/checkpointd/stage"
STATE = "/run/staging-test"
DROP_IN = "zz-checkpointd.conf"

UNITS = {
    "simple": f"[Service]\nExecStart={DRIVER} serve\n",
    "notify": f"[Service]\nType=notify\nExecStart={DRIVER} serve --notify\nWatchdogSec=0\n",
    "forking": f"[Service]\nType=forking\nPIDFile=/run/st-forking.pid\n"
               f"ExecStart={DRIVER} serve --fork /run/st-forking.pid\n",
    "oneshot": f"[Service]\nType=oneshot\nExecStart={DRIVER} serve\n",
    "always": f"[Service]\nExecStart={DRIVER} serve\nRestart=always\nRestartSec=100ms\n"
              "ExecStop=/bin/touch /run/st-always.stop-ran\nExecStopPost=/bin/touch /run/st-always.stop-ran\n",
    "onfailure": f"[Service]\nType=exec\nExecStart={DRIVER} serve\nRestart=on-failure\nRestartSec=100ms\n"
                 "RestartForceExitStatus=SIGKILL\nExecStartPre=/bin/true\n",
    "sandbox": f"[Service]\nExecStart={DRIVER} serve\nPrivateTmp=yes\nProtectSystem=strict\n"
               "DynamicUser=yes\nProtectHome=yes\nPrivateDevices=yes\nNoExecPaths=/\n"
               f"ExecPaths={DRIVER} /usr/lib /lib\nRuntimeDirectory=st-sandbox\n"
               "SystemCallFilter=@system-service\nNoNewPrivileges=yes\n"
               "RestrictAddressFamilies=AF_UNIX\nMemoryDenyWriteExecute=yes\n",
    "required": f"[Service]\nExecStart={DRIVER} serve\n",
    "activated": f"[Service]\nExecStart={DRIVER} serve\n",
}
OTHERS = {
    "st-dependent.service": "[Unit]\nRequires=st-required.service\nAfter=st-required.service\n"
                            "[Service]\nExecStart=/bin/sleep infinity\n",
    "st-activated.socket": "[Socket]\nListenStream=/run/st-a.sock\nListenStream=127.0.0.1:7777\n"
                           "FileDescriptorName=front\n",
}


def install(host):
    if host.exists(f"{STATE}/ready"):
        return
    for kind, text in UNITS.items():
        host.write(f"/etc/systemd/system/st-{kind}.service", text)
    for name, text in OTHERS.items():
        host.write(f"/etc/systemd/system/{name}", text)
    host.sh(f"mkdir -p {STATE}; touch {STATE}/ready; systemctl daemon-reload")


class Target:
    """A unit under test and the driver's folder for it."""

    def __init__(self, host, kind):
        install(host)
        self.host, self.kind = host, kind
        self.name = f"st-{kind}.service"
        self.dir = f"{STATE}/{kind}"
        self.cgroup = f"/sys/fs/cgroup/system.slice/{self.name}"
        self.main = 0
        self.busy = "activating" if kind == "oneshot" else "active"
        host.sh(f"mkdir -p {self.dir}")

    def start(self):
        if self.kind == "activated":
            self.host.run("systemctl", "start", "st-activated.socket")
        self.host.run("systemctl", "start", "--no-block", self.name)
        wait_for(lambda: self.state()["ActiveState"] == self.busy and self.runs(), f"{self.name} runs")
        self.main = int(self.state()["MainPID"])

    def drive(self, verb, *options, check=True, replay=False):
        """Runs the driver; with `replay` what it left is undone in the same breath, should it have died."""
        words = shlex.join([DRIVER, verb, self.name, self.dir, *map(str, options)])
        if replay:
            words += f"; status=$?; [ $status != 137 ] || {DRIVER} replay {self.dir} || exit; exit $status"
        return self.host.run("sh", "-c", words, check=check)

    def state(self):
        return self.host.unit(self.name, "ActiveState", "SubState", "Result", "MainPID", "NRestarts")

    def runs(self):
        """Something of the sample service is in the unit's cgroup, and it is not our helper."""
        out = self.host.sh(f"for pid in $(cat {self.cgroup}/cgroup.procs); do readlink /proc/$pid/exe; done",
                           check=False).out
        return bool(out) and set(out.split()) == {DRIVER}

    def look(self, after=""):
        """State, traces and processes, in one command: a dictionary. `after` is more of the script."""
        script = f"""systemctl show {self.name} -p ActiveState,Result,MainPID,NRestarts,DropInPaths,NeedDaemonReload
            echo traces=$(find /run/systemd -path '*/{self.name}.d/*' -name {DROP_IN}; pgrep -fx '{HELPER} .*'
                          ls -d {self.dir}/journal /run/st-always.stop-ran 2>/dev/null)
            echo procs=$(cat {self.cgroup}/cgroup.procs 2>/dev/null)
            echo freeze=$(cat {self.cgroup}/cgroup.freeze 2>/dev/null)
            echo task=$(grep -E '^(State|TracerPid)' /proc/{self.main}/status 2>/dev/null)
            {after}"""
        out = self.host.run("sh", "-c", script).out
        return dict(line.split("=", 1) for line in out.splitlines())

    def check_no_traces(self, when, after=""):
        seen = self.look(after)
        check_equal(seen["DropInPaths"], "", f"drop-ins {when}")
        check_equal(seen["NeedDaemonReload"], "no", f"reload needed {when}")
        check_equal(seen["traces"], "", f"drop-in files, helpers, journals, ExecStop= {when}")
        check_equal(seen["NRestarts"], "0", f"restarts {when}")
        return seen

    def check_untouched(self, when):
        """It runs with the main process that it had, and goes on."""
        # Its lines show that it goes on, user and system time do not: voluntary switches.
        moves = f"""switches() {{ grep ^voluntary /proc/{self.main}/status; }}
            before=$(switches); for n in $(seq 1200); do
            [ "$(switches)" = "$before" ] || {{ echo moves=yes; break; }}; sleep 0.05; done"""
        seen = self.check_no_traces(when, moves)
        check_equal((seen["ActiveState"], seen["MainPID"]), (self.busy, str(self.main)), f"the unit {when}")
        check(seen["task"].startswith(("State: S", "State: R")), f"neither stopped nor traced {when}", seen)
        check(seen["task"].endswith("TracerPid: 0"), f"not traced {when}", seen)
        check_equal(seen["freeze"], "0", f"frozen {when}")
        check_in("moves", seen, f"it goes on {when}")

    def check_down(self, when):
        seen = self.check_no_traces(when)
        check_equal((seen["ActiveState"], seen["Result"]), ("inactive", "success"), f"the unit {when}")
        check_equal(seen["procs"], "", f"processes {when}")


def steps_of(outcome):
    return [line.split()[1] for line in outcome.out.splitlines() if line.startswith("step ")]


# The last step of each way: what comes after it is no reason to take the way back.
LAST_STEP = {"stop": "units.stop.remove-drop-in", "restore": "units.hand-over.remove-drop-in"}


def with_trouble(target, verb, how):
    """Dies or fails at each step of a stop or a restore, one after the other, until there is no way back."""
    unchanged, done = target.check_untouched, target.check_down
    if verb == "restore":
        unchanged, done = done, lambda when: None  # whoever asked for it looks at what came back
    for n in range(100):
        outcome = target.drive(verb, f"--{how}", n, check=False, replay=True)
        if outcome.code == 0:
            done(f"after its {verb}")
            return n
        steps = steps_of(outcome)
        check(len(steps) == n + 1, f"the driver got as far as step {n}", outcome)
        if how == "die":
            check_equal(outcome.code, 137, f"the driver dies at {steps[-1]}")
        if steps[-1] == LAST_STEP[verb]:
            done(f"after a death at {steps[-1]}")
            return n
        unchanged(f"after {how} at {steps[-1]}")
    raise harness.Failed(f"the {verb} never went through")


def check_restored(target):
    own = target.host.unit(target.name, "Type", "Restart", "NotifyAccess", "KillSignal", "ExecStart")
    check(HELPER not in own["ExecStart"], "its own ExecStart= again", own)
    check_equal(own["KillSignal"], "15", "its own KillSignal= again")
    target.check_untouched("after the restore")
    check_in("restored", target.host.sh(f"journalctl -b -q -o cat _PID={target.main} -u {target.name}").out,
             "lines of the restored process in the journal under its unit")


def there_and_back(t, kind):
    target = Target(t.host(), kind)
    target.start()
    # A failure takes the way of the journal, as a death does; two types show it where time is short.
    for how in ("die", "fail") if SOAK or kind in ("simple", "forking") else ("die",):
        stopped = with_trouble(target, "stop", how)
        check(stopped >= 3, "a stop has several steps", stopped)
        restored = with_trouble(target, "restore", how)
        check(restored >= 9, "a restore has several steps", restored)
        check_restored(target)
    return target


def check_stops_itself(target):
    target.host.run("systemctl", "stop", target.name)
    state = target.state()
    check_equal((state["ActiveState"], state["Result"]), ("inactive", "success"), "after systemctl stop")
    log = target.host.sh(f"journalctl -b -q -o cat -u {target.name} _PID={target.main}").out
    check_in("bye", log, "its own end at systemctl stop")


@case
def simple(t):
    check_stops_itself(there_and_back(t, "simple"))


@case
def notify(t):
    check_stops_itself(there_and_back(t, "notify"))


@case
def forking(t):
    target = there_and_back(t, "forking")
    check_equal(target.host.read("/run/st-forking.pid"), f"{target.main}\n", "PIDFile=")
    check_stops_itself(target)


@case
def oneshot(t):
    target = there_and_back(t, "oneshot")
    target.host.run("kill", "-TERM", str(target.main))
    wait_for(lambda: target.state()["ActiveState"] == "inactive", "a oneshot is done when its program is")
    check_equal(target.state()["Result"], "success", "its result")


@case
def restart_always(t):
    target = there_and_back(t, "always")
    target.host.run("kill", "-SEGV", str(target.main))
    wait_for(lambda: target.state()["NRestarts"] == "1" and target.state()["ActiveState"] == "active",
             "systemd notices a crash of the restored process and restarts the unit")
    target.host.sh(f"systemctl stop {target.name}; rm /run/st-always.stop-ran")


@case
def restart_on_failure(t):
    target = there_and_back(t, "onfailure")
    target.host.run("kill", "-KILL", str(target.main))
    wait_for(lambda: target.state()["NRestarts"] == "1", "RestartForceExitStatus= holds again")
    target.host.run("systemctl", "stop", target.name)


@case
def sandboxed(t):
    host = t.host()
    target = Target(host, "sandbox")
    target.start()
    host.sh(f"echo kept >/proc/{target.main}/root/run/st-sandbox/file; "
            f"mkdir -m 711 /proc/{target.main}/root/tmp/dir; echo too >/proc/{target.main}/root/tmp/dir/file")
    there_and_back(t, "sandbox")
    root = f"/proc/{target.main}/root"
    check_equal(host.read(f"{root}/run/st-sandbox/file"), "kept\n", "content of RuntimeDirectory=")
    check_equal(host.read(f"{root}/tmp/dir/file"), "too\n", "content of PrivateTmp=")
    check_equal(host.run("stat", "-c", "%a", f"{root}/tmp/dir").out, "711\n", "mode in PrivateTmp=")
    check_stops_itself(target)


@case
def units_that_require_it_are_untouched(t):
    host = t.host()
    Target(host, "required").start()
    host.run("systemctl", "start", "st-dependent.service")
    before = host.main_pid("st-dependent.service")
    target = there_and_back(t, "required")
    check_equal(host.main_pid("st-dependent.service"), before, "main process of the unit that requires it")
    host.run("systemctl", "stop", "st-dependent.service", target.name)


@case
def socket_activated(t):
    host = t.host()
    target = there_and_back(t, "activated")
    facts = host.run(DRIVER, "resolve", target.name, check=False)
    check_equal(facts.code, 0, "the restored unit resolves")
    host.run("systemctl", "stop", target.name, "st-activated.socket")


@case
def sockets_are_found_by_name_and_address(t):
    host = t.host()
    target = Target(host, "activated")
    target.start()
    listening = [external for external in host.run(DRIVER, "resolve", target.name).json()["externals"]
                 if external["kind"] == "listen"]
    check_equal(sorted(external["index"] for external in listening), [0, 1], "both sockets")
    check_equal({external["name"] for external in listening}, {"front"}, "FileDescriptorName=")
    check(len({external["address"] for external in listening}) == 2, "addresses differ", listening)
    target.drive("stop")
    # Other inodes now, the same addresses: as after a reboot.
    host.sh("systemctl stop st-activated.socket; systemctl start st-activated.socket")
    target.drive("restore")
    target.check_untouched("with new sockets")
    target.drive("stop")
    host.sh("systemctl stop st-activated.socket; "
            "sed -i s/7777/7778/ /etc/systemd/system/st-activated.socket; "
            "systemctl daemon-reload; systemctl start st-activated.socket")
    refused = target.drive("restore", check=False)
    check_equal(refused.code, 3, "a restore without its socket")
    check_in("no socket", refused.err, "what it says")
    target.check_down("after the refusal")
    host.run("systemctl", "stop", "st-activated.socket")


@case
def what_cannot_be_carried_is_told_at_once(t):
    host = t.host()
    install(host)
    host.write("/etc/systemd/system/st-no.service",
               f"[Service]\nExecStart={DRIVER} serve\nRootDirectory=/srv\nPAMName=login\n"
               "Type=dbus\nBusName=org.example.No\n[Unit]\nOnSuccess=st-simple.service\n"
               "SuccessAction=reboot\n")
    host.sh("systemctl daemon-reload")
    refused = host.run(DRIVER, "resolve", "st-no.service", check=False)
    check_equal(refused.code, 3, "exit code")
    for part in ("is inactive", "RootDirectory=", "PAMName=", "Type=dbus", "OnSuccess=", "SuccessAction="):
        check_in(part, refused.err, "blockers")
    for name, word in {"nothing-such.service": "no such unit", "-.slice": "only services",
                       "../x.service": "not a unit's name"}.items():
        outcome = host.run(DRIVER, "resolve", name, check=False)
        check_equal(outcome.code, 3, f"resolving {name}")
        check_in(word, outcome.err, f"resolving {name}")


@case
def arguments_survive_the_drop_in(t):
    host = t.host()
    target = Target(host, "simple")
    host.write("/usr/local/bin/show-arguments", "#!/bin/sh\nprintf '<%s>' \"$@\" >/run/st-arguments\n")
    host.run("chmod", "755", "/usr/local/bin/show-arguments")
    line = r'''ExecStart=/usr/local/bin/show-arguments "a b" 'q"u' b\\s 100%% $$HOME ${X} $X ";" "ü" "l\nf" ""'''
    host.write("/etc/systemd/system/st-arguments.service",
               f"[Service]\nType=oneshot\nEnvironment=\"X=one two\"\n{line}\n")
    host.sh("systemctl daemon-reload; systemctl start st-arguments")
    expected = host.read("/run/st-arguments")
    host.write(f"{target.dir}/facts.json", '{"id": "st-arguments.service", "type": "oneshot", "main_pid": 1, '
               '"exec_start": [], "directories": [], "externals": []}')
    host.sh(f"rm /run/st-arguments; head -c 1024 /dev/zero >{target.dir}/files.tar")
    # The driver dies with the helper waiting, which we then tell to run the unit's own command.
    died = target.drive("restore", "--die", "6", check=False)
    check_equal(died.code, 137, f"the driver dies with the helper waiting: {died.err}")
    wait_for(lambda: host.main_pid("st-arguments.service") != 0, "the helper is up")
    host.sh(f"kill -USR2 {host.main_pid('st-arguments.service')}")
    wait_for(lambda: host.exists("/run/st-arguments"), "the cold start runs the unit's command")
    wait_for(lambda: host.read("/run/st-arguments") == expected, f"arguments are {expected!r}")
    host.run(DRIVER, "replay", target.dir)


@case
def a_helper_that_cannot_run_is_explained(t):
    host = t.host()
    target = Target(host, "simple")
    target.start()
    target.drive("stop")
    host.drop_in(target.name, "[Service]\nInaccessiblePaths=/usr/libexec/checkpointd\n", name="hide")
    refused = target.drive("restore", check=False)
    host.sh(f"rm -r /etc/systemd/system/{target.name}.d; systemctl daemon-reload")
    check_equal(refused.code, 3, "a restore into a sandbox that hides the helper")
    check_in("could not start the stage helper", refused.err, "what it says")
    target.check_down("after it")
    target.drive("restore")
    target.check_untouched("restored at the second try")
    check_stops_itself(target)


@case
def kills_at_random_instants(t):
    host = t.host()
    target = Target(host, "sandbox")
    target.start()
    dice = random.Random(4711)
    longest = {"stop": 0.2, "restore": 0.3}  # grows until jobs come to their end
    for n in range(240 if SOAK else 24):
        is_up = n % 2 == 0
        verb = "stop" if is_up else "restore"
        delay = dice.uniform(0.0, longest[verb])
        words = shlex.join([DRIVER, verb, target.name, target.dir])
        began = time.monotonic()
        out = host.sh(f"timeout --foreground -s KILL {delay:.3f} {words} && echo done || true; {DRIVER} replay {target.dir}; "
                      f"systemctl show -P ActiveState {target.name}").out.split()
        now_up = out[-1] == "active"
        when = f"after round {n}: {verb} killed after {delay:.3f} s"
        (target.check_untouched if now_up else target.check_down)(when)
        if now_up == is_up:  # killed before it was through: the other instants are later ones
            longest[verb] *= 1.1
            target.drive(verb)
        elif "done" in out:
            longest[verb] = min(longest[verb], 1.1 * (time.monotonic() - began))
    print(f"        killed up to {longest['stop']:.2f} s into a stop, {longest['restore']:.2f} s into a restore")
    target.check_untouched("in the end")
    check_stops_itself(target)


@case
def pids_of_images_stay_free_after_a_boot(t):
    host = t.host()
    last = lambda: int(host.read("/proc/sys/kernel/ns_last_pid"))
    check(last() < 20000, "the allocator's place before", last())
    image = "/var/lib/checkpointd/st-floor.service/20260102T030405.000006Z"
    host.write(f"{image}/checkpointd-image.json", '{"max_pid": 20000}')
    host.reboot()
    check(20000 <= last() < 25000, "the allocator's place after the boot", last())
    first = min(int(pid) for pid in host.run("pgrep", "-f", "systemd-journald").out.split())
    check(first > 20000, "PID of a service of this boot", first)
    host.run("rm", "-r", "/var/lib/checkpointd/st-floor.service")


harness.main()
