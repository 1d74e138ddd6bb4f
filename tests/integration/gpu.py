#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Units that compute on a GPU go to disk and come back, and are never left locked. The driver is the emulation of
tests/gpu/libcuda.c, loaded by the units and by checkpointd-cuda as the real one would be; all else is real."""
import random
import struct

import harness
from harness import SOAK, case, check, check_equal, check_in, wait_for

HOME = "/usr/lib/checkpointd-test-gpu"
MEMORY = "/dev/nvidia-memory"
STATUS = "/var/tmp/gpu"
OTHER = "ffeeddccbbaa99887766554433221100"
FIRST = "00112233445566778899aabbccddeeff"
UNIT = f"""[Service]
ExecStart={HOME}/cuda-counter {STATUS}-%i 2 8
"""


def uuid(digits):
    return f"GPU-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


class Program:
    """cuda-counter with two processes, each with 8 MiB of device memory and numbers that a kernel counts up."""

    def __init__(self, host, name="a"):
        self.host, self.name, self.unit = host, name, f"gpu@{name}.service"

    def start(self):
        self.host.sh(f"systemctl stop {self.unit}; systemctl reset-failed {self.unit} 2>/dev/null || true; "
                     f"rm -f {STATUS}-{self.name}-*; systemctl start {self.unit}")
        self.check_counts("fresh")
        return self

    def look(self):
        """Of each process: rounds, numbers that were wrong, calls that failed, PID."""
        text = self.host.sh(f"for f in {STATUS}-{self.name}-[01]; do od -An -v -t d8 $f || true; done").out.split()
        check_equal(len(text), 8, "what the processes tell")
        numbers = list(map(int, text))
        return [numbers[:4], numbers[4:]]

    def check_counts(self, when, since=None):
        """Both go on, their device memory is right, and no call has failed: so none is locked, frozen or held."""
        wait_for(lambda: self.host.sh(f"(ls {STATUS}-{self.name}-[01] || true) 2>/dev/null | wc -l || true").out.strip() == "2",
                 f"{when}: both tell", 30)
        before = since or self.look()

        def seen():
            now = self.look()
            return now if all(n[0] > b[0] + 70 for n, b in zip(now, before)) else None
        now = wait_for(seen, f"{when}: both count on", 30)
        for one, was in zip(now, before):
            check_equal(one[1:3], [0, 0], f"{when}: wrong numbers, failed calls")
            check_equal(one[3], was[3], f"{when}: PID")
            check_equal(self.tracer(one[3]), "0", f"{when}: tracer")
        return now

    def tracer(self, pid):
        return self.host.sh(f"sed -n 's/^TracerPid:\\t//p' /proc/{pid}/status").out.strip()

    def device_files(self):
        return self.host.run("ls", MEMORY).out.split()

    def crctl(self, verb, *options, check=True):
        return self.host.run("crctl", verb, self.unit, *options, check=check, timeout=180)

    def refuse(self, verb, *options):
        outcome = self.crctl(verb, *options, check=False)
        check(outcome.code != 0, f"{verb} is refused", outcome)
        return outcome.err

    def image(self):
        return self.host.run("crctl", "--json", "list", self.unit).json()

    def check_down(self, when):
        state = self.host.unit(self.unit)
        check_equal((state["ActiveState"], state["Result"]), ("inactive", "success"), f"{when}: the unit")
        check_equal(self.device_files(), [], f"{when}: device memory that is held")

    def check_no_trace(self, when):
        """Nothing of a job is left: no drop-in of it, no journal, no image that is not whole."""
        drop_ins = self.host.unit(self.unit, "DropInPaths")["DropInPaths"]
        check_equal(harness.without_gate(drop_ins), [], f"{when}: drop-ins")
        check_equal(self.host.sh("ls -d /run/checkpointd/jobs/*/undo 2>/dev/null || true").out, "", f"{when}: journals")


def have_devices(host, *devices):
    host.sh(f"mountpoint -q {MEMORY} || {{ mkdir -p {MEMORY}; mount -t tmpfs -o mode=1777 tmpfs {MEMORY}; }}; for d in nvidiactl nvidia0; do test -e /dev/$d || mknod -m 666 /dev/$d c 1 11; done")
    if devices:
        host.write(f"{MEMORY}/.devices", "".join(f"{digits} 1024\n" for digits in devices))


def have_faults(host, *lines):
    host.write(f"{MEMORY}/.faults", "".join(f"{line}\n" for line in lines))


def policy(host, **settings):
    text = ", ".join(f"{key.replace('_', '-')}: {value}" for key, value in settings.items())
    host.write("/etc/checkpointd/policy.yaml", f"version: 1\ndefaults: {{plugins: {{cuda: {{{text}}}}}}}\n")
    host.run("crctl", "policy", "reload")


_programs = {}


def program(t, name="a"):
    host = t.host()
    if not _programs:
        have_devices(host)
        host.write("/etc/systemd/system/gpu@.service", UNIT)
        host.drop_in("checkpointd-cuda.service", f"[Service]\nEnvironment=LD_LIBRARY_PATH={HOME}\n")
        host.sh("mkdir -p /run/checkpointd; touch /run/checkpointd/allow-faults")
    if name not in _programs:
        _programs[name] = Program(host, name)
    if host.unit(_programs[name].unit)["ActiveState"] != "active":
        _programs[name].start()
    return _programs[name]


@case
def down_and_up(t):
    unit = program(t)
    before = unit.look()
    check_equal(len(unit.device_files()), 2, "processes with device memory")
    unit.crctl("checkpoint")
    unit.check_down("checkpoint")
    unit.crctl("restore")
    unit.check_counts("restored", before)
    check_equal(len(unit.device_files()), 2, "processes with device memory, restored")


@case
def down_reboot_and_up(t):
    unit = program(t)
    before = unit.look()
    unit.crctl("checkpoint")
    unit.host.reboot()
    have_devices(unit.host)
    unit.crctl("restore")
    unit.check_counts("after a reboot", before)
    unit.host.sh("mkdir -p /run/checkpointd; touch /run/checkpointd/allow-faults")


@case
def snapshot_and_suspend(t):
    unit = program(t)
    unit.crctl("checkpoint", "--mode", "snapshot")
    before = unit.check_counts("snapshot")
    unit.crctl("checkpoint", "--mode", "suspend")
    check_equal(unit.device_files(), [], "device memory of a suspended unit")
    unit.crctl("restore")
    unit.check_counts("resumed", before)


@case
def without_the_plugin_it_is_refused(t):
    unit = program(t)
    policy(unit.host, enabled="no")
    check_in("enable the CUDA plugin", unit.refuse("checkpoint"), "the remedy")
    unit.check_counts("refused")
    policy(unit.host, colour="red")
    check_in("knows no setting 'colour'", unit.refuse("checkpoint"), "an unknown setting")
    policy(unit.host, lock_timeout="soon", device_map="GPU-1=GPU-2")
    told = unit.refuse("checkpoint")
    check_in("plugins.cuda.lock-timeout", told, "a wrong setting")
    check_in("plugins.cuda.device-map", told, "the other wrong setting")
    unit.check_counts("still refused")
    policy(unit.host, enabled="yes")
    unit.crctl("checkpoint")
    policy(unit.host, enabled="no")
    check_in("plugin 'cuda': the image needs it, and the policy switches it off", unit.refuse("restore"), "a restore")
    policy(unit.host, enabled="yes")
    unit.host.sh("mv /dev/nvidiactl /dev/aside")
    check_in("its device is not here", unit.refuse("restore"), "on a machine without a GPU")
    unit.host.sh("mv /dev/aside /dev/nvidiactl")
    unit.crctl("restore")
    unit.check_counts("restored in the end")


@case
def a_unit_without_cuda_needs_no_gpu(t):
    """An image of a machine with a GPU whose unit did not use it."""
    host = program(t).host
    host.run("systemctl", "start", "counter.service")
    host.run("crctl", "checkpoint", "counter.service")
    host.sh("mv /dev/nvidiactl /dev/aside")
    host.run("crctl", "restore", "counter.service")
    host.sh("mv /dev/aside /dev/nvidiactl; systemctl stop counter.service")


@case
def whatever_the_driver_answers(t):
    """Calls that fail, that say so and succeed nevertheless, that take too long: the unit goes on, unlocked."""
    unit = program(t)
    policy(unit.host, lock_timeout="1s", checkpoint_timeout="1s")
    for fault in ("lock fail 401", "checkpoint fail 2", "checkpoint fail 304", "lock delay 1500", "checkpoint delay 1500"):
        have_faults(unit.host, fault)
        since = unit.look()
        outcome = unit.crctl("checkpoint", check=False)
        have_faults(unit.host)
        check(outcome.code != 0 or fault == "lock delay 1500", f"{fault}: it fails", outcome)
        if outcome.code == 0:
            unit.crctl("restore")
        unit.check_counts(fault, since)
        unit.check_no_trace(fault)
    for fault in ("lock fail-after 1", "checkpoint fail-after 999", "unlock fail-after 1", "restore fail-after 1"):
        have_faults(unit.host, fault)
        since = unit.look()
        unit.crctl("checkpoint", "--mode", "snapshot")  # what counts is the state, which is asked for
        unit.check_counts(fault, since)
        unit.check_no_trace(fault)
    have_faults(unit.host)
    policy(unit.host, enabled="yes")


@case
def a_dead_worker_leaves_nothing_locked(t):
    unit = program(t)
    for step in ("checkpoint.quiesce", "checkpoint.freeze", "checkpoint.devices", "checkpoint.collect", "checkpoint.memory",
                 "checkpoint.commit"):
        for action in ("kill", "fail"):
            since = unit.look()
            unit.refuse("checkpoint", "--x-fault", f"step={step},action={action}")
            unit.check_counts(f"{step} {action}", since)
            unit.check_no_trace(f"{step} {action}")
    since = unit.look()
    unit.refuse("checkpoint", "--mode", "snapshot", "--x-fault", "step=checkpoint.resume-devices,action=kill")
    unit.check_counts("killed while the devices are resumed", since)


@case
def a_restore_that_fails_leaves_nothing(t):
    unit = program(t)
    since = unit.look()
    unit.crctl("checkpoint")
    have_faults(unit.host, "restore fail 2")
    check_in("CUDA_ERROR_OUT_OF_MEMORY", unit.refuse("restore"), "what is told")
    have_faults(unit.host)
    unit.check_down("no memory")
    for step in ("restore.devices", "restore.resume-devices", "restore.memory", "restore.commit"):
        for action in ("kill", "fail"):
            unit.refuse("restore", "--x-fault", f"step={step},action={action}")
            wait_for(lambda: unit.host.unit(unit.unit)["ActiveState"] == "inactive", f"{step}: inactive", 30)
            unit.check_no_trace(f"{step} {action}")
            unit.host.sh(f"rm -f {MEMORY}/[0-9]*")  # what the real driver does for a process that has ended
    unit.crctl("restore")
    unit.check_counts("restored in the end", since)


@case
def on_another_device(t):
    unit = program(t)
    since = unit.look()
    unit.crctl("checkpoint")
    have_devices(unit.host, OTHER)
    check_in(f"{uuid(FIRST)}: is not here", unit.refuse("restore"), "the device that is missing")
    policy(unit.host, device_map=f"{uuid(FIRST)}={uuid(OTHER)}")
    unit.crctl("restore")
    unit.check_counts("on another device", since)
    policy(unit.host, enabled="yes")
    have_devices(unit.host, FIRST, OTHER)
    unit.crctl("checkpoint")
    unit.host.write(f"{MEMORY}/.devices", f"{OTHER} 10\n")
    check_in("MiB free of the", unit.refuse("restore"), "a device that is too small")
    have_devices(unit.host, OTHER)
    unit.crctl("restore")
    unit.check_counts("back again", since)
    unit.host.sh(f"rm {MEMORY}/.devices")
    unit.start()


@case
def by_the_command(t):
    """cuda-checkpoint in the place of the driver's calls."""
    unit = program(t)
    policy(unit.host, backend="command", command=f"{HOME}/cuda-checkpoint", lock_timeout="1s", checkpoint_timeout="1s")
    unit.crctl("checkpoint", "--mode", "snapshot")
    since = unit.check_counts("snapshot by the command")
    unit.crctl("checkpoint")
    unit.crctl("restore")
    unit.check_counts("restored by the command", since)
    for fault in ("lock fail 401", "checkpoint fail 2", "checkpoint delay 1500"):
        have_faults(unit.host, fault)
        unit.refuse("checkpoint")
        have_faults(unit.host)
        unit.check_counts(f"by the command, {fault}")
        unit.check_no_trace(f"by the command, {fault}")
    unit.refuse("checkpoint", "--x-fault", "step=checkpoint.memory,action=kill")
    unit.check_counts("by the command, worker killed")
    policy(unit.host, enabled="yes")


@case
def timeouts_at_random_moments(t):
    """Calls to the driver that take as long as they please, and a policy that does not wait as long."""
    unit = program(t)
    rounds = 100 if SOAK else 12
    dice = random.Random(20261121)
    failed = 0
    for number in range(rounds):
        lock, checkpoint = dice.randint(20, 300), dice.randint(20, 300)
        delays = {call: dice.randint(0, 300) for call in ("lock", "checkpoint", "restore", "unlock")}
        policy(unit.host, lock_timeout=f"{lock}ms", checkpoint_timeout=f"{checkpoint}ms")
        have_faults(unit.host, *(f"{call} delay {delay}" for call, delay in delays.items()))
        since = unit.look()
        outcome = unit.crctl("checkpoint", "--mode", "snapshot", check=False)
        have_faults(unit.host)
        failed += outcome.code != 0
        unit.check_counts(f"round {number}: {lock} {checkpoint} {delays} {outcome.err}", since)
        unit.check_no_trace(f"round {number}")
    check(0 < failed < rounds, "some came to their end in time and some did not", failed)
    policy(unit.host, enabled="yes")


harness.main()
