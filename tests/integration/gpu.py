#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Units that compute on a GPU go to disk and come back, and are never left locked. The driver is an emulation."""
import contextlib
import json
import pathlib
import re
import signal
import subprocess
import tempfile

import harness
from gpu_units import (DOWN_STEPS, EMULATED, FIRST, HOME, MEMORY, OTHER, STATUS, UP_STEPS, Program, have_devices, have_driver,
                       have_faults, policy, program, uuid)
from harness import SOAK, case, check, check_equal, check_in, wait_for

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
    for fault in ("lock fail 401", "checkpoint fail 2", "checkpoint fail 304", "lock delay 1500", "checkpoint delay 3000"):
        policy(unit.host, lock_timeout="1s", checkpoint_timeout="1s")
        have_faults(unit.host, fault)
        since = unit.look()
        outcome = unit.crctl("checkpoint", check=False)
        have_faults(unit.host)
        policy(unit.host, enabled="yes")  # what is to succeed has the time of a slow machine
        check(outcome.code != 0 or fault.startswith("lock delay"), f"{fault}: it fails", outcome)
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


@case
def a_dead_worker_leaves_nothing_locked(t):
    unit = program(t)
    others = ("checkpoint.freeze", "checkpoint.seize", "checkpoint.collect", "checkpoint.memory", "checkpoint.commit")
    unit.check_dead_workers((step, action) for step in DOWN_STEPS[:-1] + others for action in ("kill", "fail"))
    for action in ("kill", "fail"):
        since = unit.look()
        unit.refuse("checkpoint", "--mode", "snapshot", "--x-fault", f"step={DOWN_STEPS[-1]},action={action}")
        unit.check_counts(f"{action} while the devices are resumed", since)
        unit.check_no_trace(f"{action} while the devices are resumed")


def steps_of(host, *verb):
    """Of a job that goes well, those that plugins have added."""
    job = host.run("crctl", *verb, "--json", timeout=180).json()["Id"]
    result = json.loads(host.read(f"/run/checkpointd/jobs/{job}/result.json"))
    return {one["step"] for one in result["steps"] if "device" in one["step"] or "quiesce" in one["step"]}


@case
def every_step_of_devices_is_gone_through(t):
    """Into those of the two lists faults are injected, here and in amdgpu.py."""
    unit = program(t)
    check_equal(steps_of(unit.host, "checkpoint", unit.unit, "--mode", "snapshot"), set(DOWN_STEPS), "steps of a snapshot")
    check_equal(steps_of(unit.host, "checkpoint", unit.unit), set(DOWN_STEPS[:-1]), "steps of a checkpoint")
    check_equal(steps_of(unit.host, "restore", unit.unit), set(UP_STEPS), "steps of a restore")


@case
def a_step_of_devices_that_hangs(t):
    """The time of the phase ends the worker, and whoever undoes gives back what it had."""
    unit = program(t)
    policy(unit.host, timeouts="{devices: 2s}")
    for step, *way in ((DOWN_STEPS[2],), (DOWN_STEPS[3], "--mode", "snapshot"), (DOWN_STEPS[0],), (DOWN_STEPS[1],))[:4 if SOAK else 1]:
        since = unit.look()
        check_in(step, unit.refuse("checkpoint", *way, "--x-fault", f"step={step},action=hang"), "where it hung")
        unit.check_counts(f"{step} hangs", since)
        unit.check_no_trace(f"{step} hangs")
    policy(unit.host, enabled="yes")
    unit.crctl("checkpoint")
    policy(unit.host, timeouts="{devices: 2s}")
    for step in UP_STEPS[::-1] if SOAK else UP_STEPS[2:]:
        check_in(step, unit.refuse("restore", "--x-fault", f"step={step},action=hang"), "where it hung")
        wait_for(lambda: unit.host.unit(unit.unit)["ActiveState"] == "inactive", f"{step} hangs: inactive")
        unit.check_no_trace(f"{step} hangs")
        unit.host.sh(f"rm -f {MEMORY}/[0-9]*")
    policy(unit.host, enabled="yes")
    unit.refuse("restore", "--x-fault", f"step={UP_STEPS[0]},action=enospc")
    unit.crctl("restore")
    unit.check_counts("restored in the end", since)


@case
def a_restore_that_fails_leaves_nothing(t):
    unit = program(t)
    since = unit.look()
    unit.crctl("checkpoint")
    have_faults(unit.host, "restore fail 2")
    check_in("CUDA_ERROR_OUT_OF_MEMORY", unit.refuse("restore"), "what is told")
    have_faults(unit.host)
    unit.check_down("no memory")
    for step in UP_STEPS + ("restore.memory", "restore.commit"):
        for action in ("kill", "fail"):
            unit.refuse("restore", "--x-fault", f"step={step},action={action}")
            wait_for(lambda: unit.host.unit(unit.unit)["ActiveState"] == "inactive", f"{step}: inactive")
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
    unit.host.sh(f"systemctl stop {unit.unit}; rm {MEMORY}/.devices {MEMORY}/[0-9]*")
    unit.start()


STORAGE, BEFORE_STORAGE = 13040, 13000


class Two(Program):
    """Each of its processes has memory on two devices; of the first one a bit more."""
    template = "two"

    def sizes(self, now):
        return [int(self.host.sh(f"stat -c %s {MEMORY}/{now[0][3]}-{device}").out) for device in (FIRST, OTHER)]


@case
def all_devices_of_an_image_have_a_place(t):
    """The driver wants a map of all of them, or none; and what is in the way of a restore is told at once."""
    host = program(t).host
    host.sh(f"systemctl stop {program(t).unit}; rm -f {MEMORY}/[0-9]*")
    have_driver(host, BEFORE_STORAGE)
    have_devices(host, FIRST, OTHER)
    host.write("/etc/systemd/system/two@.service", f"[Service]\n{EMULATED}ExecStart={HOME}/cuda-counter {STATUS}-%i 2 8 two\n")
    unit = Two(host, "two").start()
    since = unit.look()
    unit.crctl("checkpoint")
    unit.check_down("checkpoint")
    policy(host, device_map=f"{uuid(FIRST)}={uuid(OTHER)}")
    for part in (f"{uuid(OTHER)}: would have to take what was on {uuid(FIRST)} and on {uuid(OTHER)}", "device-map"):
        check_in(part, unit.refuse("restore"), "a map of one of two")
    policy(host, device_map=f"'{uuid(FIRST)}={uuid(OTHER)},{uuid(OTHER)}={uuid(FIRST)}'")
    have_driver(host, 12080)
    host.write(f"{MEMORY}/.devices", f"{OTHER} 10\n")
    host.sh("mount -t tmpfs tmpfs /proc/driver; mkdir -p /proc/driver/nvidia/capabilities/gpu0/mig/gi1")
    told = unit.refuse("restore")
    for part in ("gpu0: is divided into instances", "CUDA driver: is of CUDA 12.8, and puts nothing on another device",
                 f"{uuid(OTHER)}: has 10 MiB free of the", f"{uuid(FIRST)}: is not here"):
        check_in(part, told, "all that is in the way of a restore")
    host.sh("umount /proc/driver")
    have_devices(host, FIRST, OTHER)
    have_driver(host, BEFORE_STORAGE)
    unit.crctl("restore")
    since = unit.check_counts("the other way around", since)
    check(unit.sizes(since)[0] < unit.sizes(since)[1], "how much is on which device", unit.sizes(since))
    have_driver(host, STORAGE)
    unit.crctl("checkpoint")
    unit.crctl("restore")
    since = unit.check_counts("and back, by files", since)
    check(unit.sizes(since)[0] > unit.sizes(since)[1], "how much is on which device again", unit.sizes(since))
    unit.crctl("checkpoint")
    host.sh(f"rm -rf /var/lib/checkpointd/{unit.unit}")
    policy(host, device_map=f"{uuid(FIRST)}={uuid(OTHER)}")
    one = program(t)
    since = one.start().look()
    one.crctl("checkpoint")
    host.sh(f"rm -f {MEMORY}/[0-9]*")
    one.crctl("restore")
    one.check_counts("on the device that it did not use", since)
    check_equal(sorted(one.device_files()), sorted(f"{process[3]}-{OTHER}" for process in since), "device memory")
    policy(host, enabled="yes")
    have_driver(host, BEFORE_STORAGE)
    host.sh(f"systemctl stop {one.unit}; rm -f {MEMORY}/.devices {MEMORY}/[0-9]*")


class Refused(Program):
    """The second of its processes has managed memory, or offers memory to others."""
    template = "refused"


def host_of_refused(t):
    host = program(t).host
    host.write("/etc/systemd/system/refused@.service",
               f"[Service]\n{EMULATED}ExecStart={HOME}/cuda-counter {STATUS}-%i 2 8 %i\n")
    host.run("systemctl", "daemon-reload")
    return host


@case
def what_the_driver_refuses_to_checkpoint(t):
    """Told once: which process, what it is likely to use and what to do; and both go on, the one that was off its device too."""
    host = host_of_refused(t)
    for use, version, fault, call in (("managed", BEFORE_STORAGE, "", "checkpoint"), ("ipc", STORAGE, "", "checkpoint"),
                                      ("ipc", STORAGE, "lock fail 801", "lock")):
        have_driver(host, version)
        have_faults(host, fault)
        unit = Refused(host, use)
        since = (unit if host.unit(unit.unit)["ActiveState"] == "active" else unit.start()).look()
        told = unit.refuse("checkpoint")
        have_faults(host)
        guilty = since[1 if call == "checkpoint" else 0][3]
        for part in (f"pid {guilty} (CUDA): the driver did not {call} it: CUDA_ERROR_NOT_SUPPORTED (801)",
                     "managed memory (UVM)", "(IPC)", "driver 610 and cuda-checkpoint --launch-job"):
            check_in(part, told, f"{use} {call}")
        check_equal(told.count("the driver did not"), 1, f"{use} {call}: answers")
        unit.check_counts(f"{use} {call}", since)
        unit.check_no_trace(f"{use} {call}")
        if use == "managed" or call == "lock":
            host.sh(f"systemctl stop {unit.unit}; rm -f " + " ".join(f"{MEMORY}/{one[3]}-*" for one in since))
    have_driver(host, BEFORE_STORAGE)


@case
def events_for_others_are_named_before_anything_is_locked(t):
    """By the file that the driver has for them; unless the policy, or the way that the program was started, leaves it to the driver."""
    host = host_of_refused(t)
    unit = Refused(host, "event").start()
    since = unit.look()
    have_faults(host, "lock fail 999")
    check_in(f"pid {since[1][3]} (CUDA): has /dev/shm/cuda.shm.0.{since[1][3]:x}.1 mapped", unit.refuse("checkpoint"), "who is in the way")
    have_faults(host)
    unit.check_counts("refused", since)
    policy(host, check_ipc="no")
    check_in("the driver did not checkpoint it", unit.refuse("checkpoint"), "as the policy says")
    policy(host, enabled="yes")
    host.drop_in(unit.unit, "[Service]\nEnvironment=CUDA_CHECKPOINT_JOB_FILE=/proc/self/fd/3\n")
    unit.start()
    check_in("the driver did not checkpoint it", unit.refuse("checkpoint"), "of a program that cuda-checkpoint has started")
    host.sh(f"systemctl stop {unit.unit}; rm -f /dev/shm/cuda.shm.*")
    host.sh(f"for f in {MEMORY}/[0-9]*; do p=${{f##*/}}; test -e /proc/${{p%%-*}} || rm $f; done")


ODD = f"""[Service]
Environment=LD_LIBRARY_PATH={HOME} CUDA_MPS_PIPE_DIRECTORY=/run/mps
ExecStart={HOME}/cuda-counter {STATUS}-odd 1 8 odd
"""
MPS = """[Socket]
ListenStream=/run/mps/control
Accept=yes
"""


@case
def all_that_is_in_the_way_is_told_at_once(t):
    host = program(t).host
    have_driver(host, 13000)
    host.write("/etc/systemd/system/odd.service", ODD)
    host.write("/etc/systemd/system/mps.socket", MPS)
    host.write("/etc/systemd/system/mps@.service", "[Service]\nExecStart=sleep 1000\n")
    host.sh(f"systemctl start mps.socket; rm -f {STATUS}-odd-0; systemctl start odd.service; mount -t tmpfs tmpfs /proc/driver; "
            "mkdir -p /proc/driver/nvidia/capabilities/gpu0/mig/gi1")
    wait_for(lambda: host.exists(f"{STATUS}-odd-0"), "it counts")
    pid = host.main_pid("odd.service")
    host.write(f"{MEMORY}/.devices", f"{FIRST} 16000000\n")
    host.sh(f"truncate -s 8T {MEMORY}/{pid}-{FIRST}")
    told = host.run("crctl", "checkpoint", "odd.service", check=False).err
    for part in ("CUDA driver: is of CUDA 13.0 and has 1 device", "CUDA device gpu0: is divided into instances (MIG)", "host memory: has",
                 f"pid {pid} (CUDA): works through the multi-process service (MPS) at /run/mps/control",
                 "has /dev/nvidia-memory", "it was forked by a program that uses CUDA"):
        check_in(part, told, "what is in the way")
    host.sh("systemctl stop odd.service mps.socket 'mps@*'; umount /proc/driver")
    host.sh(f"rm -f {MEMORY}/{pid}-*; truncate -s 8T {MEMORY}/999999-{FIRST}")  # somebody else's memory is in nobody's way
    unit = program(t)
    unit.crctl("checkpoint", "--mode", "snapshot")
    unit.check_counts("beside one who has much")
    host.sh(f"rm {MEMORY}/999999-* {MEMORY}/.devices")


def storage_files(unit):
    """Files of device memory in the images of the unit, and their sizes."""
    out = unit.host.sh(f"find /var/lib/checkpointd -name 'gpu-cs-*.img' -printf '%f %s\\n'").out
    return {name: int(size) for name, size in (line.split() for line in out.splitlines())}


def forget_images(unit):
    unit.host.sh(f"rm -rf /var/lib/checkpointd/{unit.unit}/*")


@case
def device_memory_goes_to_files(t):
    """A driver of CUDA 13.4 hands device memory to us: it is in files of its own, and not in the processes."""
    unit = program(t)
    unit.crctl("checkpoint")
    unit.crctl("restore")  # of a driver that is older
    forget_images(unit)
    have_driver(unit.host, STORAGE)
    since = unit.check_counts("another driver")
    unit.crctl("checkpoint")
    unit.check_down("checkpoint")
    check_equal(sorted(storage_files(unit)), sorted(f"gpu-cs-{process[3]}.img" for process in since), "their files")
    check(all(size >= 8 << 20 for size in storage_files(unit).values()), "their sizes", storage_files(unit))
    pages = unit.host.sh("du -cb $(find /var/lib/checkpointd -name 'pages-*.img') | tail -1").out.split()[0]
    check(int(pages) < 24 << 20, "what is in the images of ordinary memory: the programs' own copies", pages)
    have_driver(unit.host, BEFORE_STORAGE)
    check_in("takes device memory from nobody", unit.refuse("restore"), "a driver that is too old")
    have_driver(unit.host, STORAGE)
    unit.crctl("restore")
    unit.check_counts("restored", since)
    unit.crctl("checkpoint", "--mode", "snapshot")
    unit.check_counts("snapshot", since)
    unit.crctl("checkpoint", "--mode", "suspend")
    unit.crctl("restore")
    unit.check_counts("resumed", since)
    policy(unit.host, storage="host")
    forget_images(unit)
    unit.crctl("checkpoint", "--mode", "snapshot")
    check_equal(storage_files(unit), {}, "files of device memory where the policy wants none")
    policy(unit.host, enabled="yes")


@case
def what_others_have_is_not_in_the_image(t):
    """Somebody leaves the device while the program is taken off it: the image says what the program had. Whether there is
    room for that is not asked where the policy says so."""
    unit = program(t)
    somebody = f"{MEMORY}/999999-{FIRST}"
    for version, call in ((BEFORE_STORAGE, "checkpoint"), (STORAGE, "copy")):
        have_driver(unit.host, version)
        forget_images(unit)
        since = unit.look()
        had = sum(map(int, unit.host.sh(f"stat -c %s {MEMORY}/*-{FIRST}").out.split()))
        unit.host.sh(f"truncate -s 500M {somebody}")
        have_faults(unit.host, f"{call} hang")
        unit.host.sh(f"systemd-run -q -u verb -- crctl checkpoint {unit.unit}")
        wait_for(lambda: unit.host.exists(f"{MEMORY}/.in-{call}"), f"the driver is in {call}")
        unit.host.sh(f"rm {somebody}")
        have_faults(unit.host)
        wait_for(lambda: unit.host.unit("verb.service")["ActiveState"] == "inactive", "the checkpoint is done", 60)
        unit.check_down(call)
        image = json.loads(unit.host.sh(f"cat $(find /var/lib/checkpointd/{unit.unit} -name cuda-devices.json)").out)
        check_equal(image["devices"], [{"uuid": uuid(FIRST), "bytes": had}], f"{call}: what was taken off the device")
        unit.host.write(f"{MEMORY}/.devices", f"{FIRST} 10\n")
        check_in("or set plugins: {cuda: {check-memory: no}}", unit.refuse("restore"), "the remedy")
        policy(unit.host, check_memory="no")
        unit.crctl("restore")
        unit.check_counts(f"{call}: without the check", since)
        policy(unit.host, enabled="yes")
        unit.host.sh(f"rm {MEMORY}/.devices")


@case
def storage_after_a_reboot_on_another_device(t):
    unit = program(t)
    have_driver(unit.host, STORAGE)
    since = unit.look()
    unit.crctl("checkpoint")
    unit.host.reboot()
    have_devices(unit.host, OTHER)
    have_driver(unit.host, STORAGE)
    unit.host.sh("mkdir -p /run/checkpointd; touch /run/checkpointd/allow-faults")
    check_in(f"{uuid(FIRST)}: is not here", unit.refuse("restore"), "the device that is missing")
    policy(unit.host, device_map=f"{uuid(FIRST)}={uuid(OTHER)}")
    unit.crctl("restore")
    unit.check_counts("on another device", since)
    policy(unit.host, enabled="yes")
    unit.host.sh(f"systemctl stop {unit.unit}; rm {MEMORY}/.devices {MEMORY}/[0-9]*")
    unit.start()


@case
def whatever_becomes_of_a_copy(t):
    """Nothing takes back that device memory was mapped: what goes wrong from there on, the program goes on with its numbers."""
    unit = program(t)
    have_driver(unit.host, STORAGE)
    policy(unit.host, storage="custom", checkpoint_timeout="500ms")
    faults = ["checkpoint fail 304", "copy delay 300", "complete fail-once 999", "describe fail-once 999",
              "checkpoint delay 2500", "copy fail-once 700", "complete delay 2500", "checkpoint fail-after 999"]
    for fault in faults if SOAK else faults[:4]:
        have_faults(unit.host, fault)
        since = unit.look()
        unit.refuse("checkpoint", *(["--mode", "snapshot"] if "once" in fault else []))
        have_faults(unit.host)
        unit.check_counts(fault, since)
        unit.check_no_trace(fault)
    policy(unit.host, storage="custom")  # what is to succeed has the time of a slow machine
    for fault in ("complete fail-after 999", "restore fail-after 1"):
        have_faults(unit.host, fault)
        since = unit.look()
        unit.crctl("checkpoint", "--mode", "snapshot")
        unit.check_counts(fault, since)
        unit.check_no_trace(fault)
    have_faults(unit.host, "map fail 304")
    policy(unit.host, storage="auto")
    unit.crctl("checkpoint", "--mode", "snapshot")  # the old way is left
    unit.check_counts("the old way")
    have_faults(unit.host)
    policy(unit.host, enabled="yes")


def hang(unit, verb, call):
    """It does, for as long as there is that fault."""
    have_faults(unit.host, f"{call} hang")
    unit.host.sh(f"systemd-run -q -u verb -- crctl {verb} {unit.unit}")
    wait_for(lambda: unit.host.exists(f"{MEMORY}/.in-{call}"), f"the driver is in {call}")


def crash(unit, verb, call, whom="all"):
    """The worker is killed while the driver is in `call`, and that goes on."""
    hang(unit, verb, call)
    unit.host.sh(f"systemctl kill --kill-whom={whom} -s KILL 'checkpointd-job-*'")
    have_faults(unit.host)
    wait_for(lambda: unit.host.unit("verb.service")["ActiveState"] != "active", f"{verb} has failed")
    unit.host.sh("systemctl reset-failed verb.service")


@case
def a_dead_worker_leaves_no_signal_blocked(t):
    """The thread that the driver works in runs with its signals blocked."""
    unit = program(t)
    since, masks = unit.look(), unit.signal_masks()
    crash(unit, "checkpoint --mode snapshot", "checkpoint")
    unit.check_counts("killed in checkpoint", since)
    check_equal(unit.signal_masks(), masks, "signals that are blocked")
    unit.check_no_trace("killed in checkpoint")


@case
def signals_while_the_driver_works(t):
    """Any SIGCONT stops a traced thread, as SIGSTOP does; and stopping a unit sends the one."""
    unit = program(t)
    for call, signals in (("checkpoint", "CONT"), ("restore", "CONT"), ("checkpoint", "STOP"), ("restore", "STOP CONT")):
        since, masks = unit.look(), unit.signal_masks()
        hang(unit, "checkpoint --mode snapshot", call)
        for signal in signals.split():
            unit.host.sh(f"systemctl kill -s {signal} {unit.unit}")
        have_faults(unit.host)
        wait_for(lambda: unit.host.unit("verb.service")["ActiveState"] != "active", f"{call} {signals}: it ends")
        check_equal(unit.host.unit("verb.service")["ActiveState"], "inactive", f"{call} {signals}: the snapshot")
        if signals == "STOP":
            states = unit.host.sh("cat " + " ".join(f"/proc/{process[3]}/stat" for process in since)).out
            check_equal(states.count(") T "), 2, f"{call} {signals}: processes that are stopped")
            unit.host.sh(f"systemctl kill -s CONT {unit.unit}")
        unit.check_counts(f"{call} {signals}", since)
        check_equal(unit.signal_masks(), masks, f"{call} {signals}: signals that are blocked")
        unit.check_no_trace(f"{call} {signals}")


@case
def a_dead_worker_leaves_nothing_mapped(t):
    unit = program(t)
    have_driver(unit.host, STORAGE)
    policy(unit.host, storage="custom")
    for call in ("lock", "checkpoint", "copy", "complete") if SOAK else ("copy",):
        since = unit.look()
        crash(unit, "checkpoint --mode snapshot", call)
        unit.check_counts(f"killed in {call}", since)
        unit.check_no_trace(f"killed in {call}")
    unit.check_dead_workers((("checkpoint.collect", "kill"), ("checkpoint.memory", "fail")))
    for call in ("restore", "copy", "complete") if SOAK else ("complete",):
        unit.crctl("checkpoint")
        crash(unit, "restore", call)
        wait_for(lambda: unit.host.unit(unit.unit)["ActiveState"] == "inactive", "the unit is down again")
        unit.check_no_trace(f"a restore killed in {call}")
        unit.host.sh(f"rm -f {MEMORY}/[0-9]*")  # what the real driver does for a process that has ended
        unit.crctl("restore")
        since = unit.check_counts("restored after all", since)
    policy(unit.host, enabled="yes")


@case
def a_restore_of_storage_that_fails(t):
    unit = program(t)
    have_driver(unit.host, STORAGE)
    since = unit.look()
    unit.crctl("checkpoint")
    for fault, told in (("restore fail 2", "OUT_OF_MEMORY"), ("copy fail 700", "(700)"), ("complete fail 999", "(999)")):
        have_faults(unit.host, fault)
        check_in(told, unit.refuse("restore"), fault)
        have_faults(unit.host)
        unit.host.sh(f"rm -f {MEMORY}/[0-9]*")
        wait_for(lambda: unit.host.unit(unit.unit)["ActiveState"] == "inactive", f"{fault}: inactive")
        unit.check_no_trace(fault)
    unit.crctl("restore")
    unit.check_counts("restored in the end", since)


@case
def where_the_disk_is_full(t):
    """What was copied already is on the disk, what did not fit there goes to memory of the helper, and from both back."""
    unit = program(t)
    have_driver(unit.host, STORAGE)
    since = unit.look()
    forget_images(unit)
    images = f"/var/lib/checkpointd/{unit.unit}"
    unit.host.sh(f"mount -t tmpfs -o mode=700,size=5m tmpfs {images}")
    check_in("No space left", unit.refuse("checkpoint"), "a full disk")
    unit.check_counts("a full disk", since)
    unit.check_no_trace("a full disk")
    unit.host.sh(f"umount {images}")


def crash_with_helper(unit, step, *faults):
    """It and the worker end while the processes are off their devices; until the job's recovery has ended too."""
    unit.host.sh(f"systemd-run -q -u verb -- crctl checkpoint {unit.unit} --x-fault step={step},action=stop")
    wait_for(lambda: "checkpointd-wor) T" in unit.host.sh("cat /proc/[0-9]*/stat || true").out, f"it stands at {step}")
    check_equal(unit.device_files(), [], "processes with device memory")
    have_faults(unit.host, *faults)
    unit.host.sh("systemctl kill -s KILL checkpointd-cuda.service; systemctl kill -s KILL 'checkpointd-job-*'")
    wait_for(lambda: unit.host.unit("verb.service")["ActiveState"] != "active", "the job has failed")
    unit.host.sh("systemctl reset-failed verb.service")


@case
def a_dead_helper_after_the_copy(t):
    """From then on the file of the image alone has the numbers, wherever the image is, also where it is gone."""
    unit = program(t)
    have_driver(unit.host, STORAGE)
    for step, *faults in (("checkpoint.collect",), ("units.stop.stop-unit",), ("checkpoint.collect", "restore fail 304")):
        since = unit.look()
        crash_with_helper(unit, step, *faults)
        recover(unit, *faults)
        unit.check_counts(f"without a helper, {step} {faults}", since)
        unit.check_no_trace(f"without a helper, {step} {faults}")


def recover(unit, *faults):
    """What could not be undone because of these is undone once there are none."""
    if faults:
        check("undo" in unit.host.sh("ls -d /run/checkpointd/jobs/*/undo || true").out, f"{faults}: it is left to do")
        have_faults(unit.host)
        unit.host.sh("systemctl stop checkpointd-cuda.service; systemctl restart checkpointd.service")


@case
def a_driver_that_cannot_be_asked(t):
    """Nothing is known of a process then: what it takes to unlock it stays in the journal until that can be asked again."""
    unit = program(t)
    have_driver(unit.host, BEFORE_STORAGE)
    since = unit.look()
    crash_with_helper(unit, "checkpoint.collect", "init fail 803")
    check_in("cuInit answers 803", unit.refuse("checkpoint"), "another checkpoint")
    recover(unit, "init fail 803")
    unit.check_counts("asked again", since)
    unit.check_no_trace("asked again")


@case
def a_driver_that_does_not_say_how_it_went(t):
    """Asked for the state after a call, or for the thread that it works in, it fails: the unit goes on, unlocked."""
    unit = program(t)
    have_driver(unit.host, BEFORE_STORAGE)
    for call, told in (("state-running", "its state cannot be had"), ("thread", "does not tell whether it uses CUDA"),
                       ("state-locked", "its state cannot be had"), ("state-checkpointed", "its state cannot be had")):
        since, masks = unit.look(), unit.signal_masks()
        have_faults(unit.host, f"{call} fail-once 999")
        check_in(told, unit.refuse("checkpoint"), call)
        unit.check_counts(call, since)
        unit.check_no_trace(call)
        check_equal(unit.signal_masks(), masks, f"{call}: signals that are blocked")
    since = unit.look()
    have_faults(unit.host, "state-locked fail 999")
    check_in("its state cannot be had", unit.refuse("checkpoint"), "as long as it does not say")
    recover(unit, "state-locked fail 999")
    unit.check_counts("when it does say again", since)
    unit.check_no_trace("when it does say again")
    unit.crctl("checkpoint")
    for call in ("thread", "state-checkpointed", "state-locked"):
        have_faults(unit.host, f"{call} fail-once 999")
        check_in("(999)", unit.refuse("restore"), f"{call} in a restore")
        unit.host.sh(f"rm -f {MEMORY}/[0-9]*")
        wait_for(lambda: unit.host.unit(unit.unit)["ActiveState"] == "inactive", f"{call} in a restore: inactive")
        unit.check_no_trace(f"{call} in a restore")
    unit.crctl("restore")
    unit.check_counts("restored in the end", since)


def cancel(unit, call, faults, then=(), through=0):
    """By Job.Cancel, while the driver is in a call and this part is shown as done; which goes on as `then` says. Answers where
    the job was, and its error."""
    have_faults(unit.host, *faults)
    unit.host.sh(f"systemd-run -q -u verb -- crctl checkpoint {unit.unit}")
    wait_for(lambda: unit.host.exists(f"{MEMORY}/.in-{call}"), f"the driver is in {call}")
    job = max(int(name) for name in unit.host.sh("ls /run/checkpointd/jobs").out.split())
    path = ("org.checkpointd1", f"/org/checkpointd1/job/{job}", "org.checkpointd1.Job")
    shown = lambda: unit.host.run("busctl", "get-property", *path, "Phase", "Bytes", "BytesTotal").out.split()
    wait_for(lambda: int(shown()[5]) >= 16 << 20 and int(shown()[3]) == int(shown()[5]) * through, f"{call}: {through} of all is shown")
    phase = shown()[1]
    unit.host.run("busctl", "call", *path, "Cancel")
    worker = unit.host.main_pid(f"checkpointd-job-{job}.service")
    pending = lambda: re.search(r"ShdPnd:\t(\w+)", unit.host.read(f"/proc/{worker}/status")).group(1)
    wait_for(lambda: int(pending(), 16) >> signal.SIGTERM - 1 & 1, "the worker is told")  # and looks without taking it
    have_faults(unit.host, *then)
    wait_for(lambda: unit.host.unit("verb.service")["ActiveState"] == "failed", "it has ended")
    have_faults(unit.host)
    unit.host.sh("systemctl reset-failed verb.service")
    check_equal(unit.host.run("busctl", "get-property", *path, "State").out, 's "cancelled"\n', f"{call}: the job")
    return phase, unit.host.run("busctl", "get-property", *path, "ErrorMessage").out


@case
def cancelled_while_the_driver_works(t):
    """What it is in comes to its end; then nothing more is begun, nor copied, and all go on."""
    unit = program(t)
    have_driver(unit.host, BEFORE_STORAGE)
    since = unit.look()
    first, second = sorted(one[3] for one in since)
    for pid, other in ((first, second), (second, first)):
        phase, told = cancel(unit, "checkpoint", [f"checkpoint hang 1 {pid}"], through=0 if pid == first else 0.5)
        check_equal(phase, '"checkpoint.devices"', "where it was")
        if pid == first:
            check_in(f"pid {other} (CUDA): nothing more was done with it", told, "what was not begun")
        unit.check_counts(f"cancelled in the call for {pid}", since)
        unit.check_no_trace(f"cancelled in the call for {pid}")
    have_driver(unit.host, STORAGE)
    told = cancel(unit, "copy", ["copy hang"], ["copy delay 700"])[1]
    check_in("copying its device memory was cancelled", told, "what it says")
    unit.check_counts("cancelled in a copy", since)
    unit.check_no_trace("cancelled in a copy")
    have_driver(unit.host, BEFORE_STORAGE)


@case
def who_has_the_library_and_an_old_driver(t):
    """And does not use it: that is nothing to the driver."""
    host = program(t).host
    have_driver(host, 12000)
    host.write("/etc/systemd/system/unused.service",
               f"[Service]\nEnvironment=LD_PRELOAD={HOME}/libcuda.so.1\nExecStart=sleep infinity\n")
    host.sh("systemctl start unused.service")
    pid = host.main_pid("unused.service")
    host.run("crctl", "checkpoint", "unused.service")
    host.run("crctl", "restore", "unused.service")
    check_equal(host.main_pid("unused.service"), pid, "its PID")
    check_in("libcuda.so", host.sh(f"cat /proc/{pid}/maps").out, "its mappings")
    host.sh("systemctl stop unused.service")
    have_driver(host, BEFORE_STORAGE)


@case
def who_uses_a_driver_that_is_too_old(t):
    """It is told which driver there is and which is needed, with all else that is in the way."""
    unit = program(t)
    since = unit.look()
    have_driver(unit.host, 12000)
    unit.host.sh("mount -t tmpfs tmpfs /proc/driver; mkdir -p /proc/driver/nvidia/capabilities/gpu0/mig/gi1")
    told = unit.refuse("checkpoint")
    for part in ("CUDA driver: cannot checkpoint processes: libcuda.so.1: is of CUDA 12.0", "version 570 (CUDA 12.8) or newer",
                 "gpu0: is divided into instances", *(f"pid {one[3]} (CUDA): has /dev/nvidia" for one in since)):
        check_in(part, told, "what is in the way")
    check("fork" not in told, "they are not taken for what they are not", told)
    unit.host.sh("umount /proc/driver")
    have_driver(unit.host, BEFORE_STORAGE)
    unit.check_counts("refused", since)


class Late(Program):
    """A third process begins to use CUDA when there is a file."""
    template = "late"


@case
def who_comes_while_the_checkpoint_begins(t):
    """It was not asked about, so it is not locked: nothing is taken off the others, and the next try takes them all."""
    host = program(t).host
    host.write("/etc/systemd/system/late@.service", f"""[Service]
{EMULATED}ExecStart=bash -c '{HOME}/cuda-counter {STATUS}-%i 2 8 & until [ -e /run/late ]; do sleep 0.05; done; \
exec {HOME}/cuda-counter {STATUS}-later 1 8'
""")
    unit = Late(host, "late").start()
    since = unit.look()
    have_faults(host, "lock hang")
    host.sh(f"systemd-run -q -u verb -- sh -c 'crctl checkpoint {unit.unit} --mode snapshot 2>/run/told'")
    wait_for(lambda: host.exists(f"{MEMORY}/.in-lock"), "the driver is in lock")
    host.sh("touch /run/late")
    wait_for(lambda: host.exists(f"{STATUS}-later-0"), "the third one computes")
    have_faults(host)
    wait_for(lambda: host.unit("verb.service")["ActiveState"] == "failed", "the checkpoint has failed")
    told = host.sh("systemctl reset-failed verb.service; cat /run/told").out
    for part in (f"pid {host.main_pid(unit.unit)} (CUDA): has /dev/nvidia", "had none when the checkpoint began", "try again"):
        check_in(part, told, "what is told")
    unit.check_counts("refused", since)
    unit.check_no_trace("refused")
    unit.crctl("checkpoint", "--mode", "snapshot")
    unit.check_counts("all three", since)
    host.sh(f"systemctl stop {unit.unit} {program(t).unit}; rm -f /run/late /run/told {STATUS}-later-0 {MEMORY}/[0-9]*")


@case
def what_the_policy_says_of_one_that_takes_too_long(t):
    """It stays as it is, and the other goes on, which has as long for that; or it is killed."""
    unit = program(t)
    have_driver(unit.host, BEFORE_STORAGE)
    since = unit.look()
    for wanted, told in (("leave", "left as it is"), ("kill", "it is ended")):
        policy(unit.host, on_timeout=wanted, checkpoint_timeout="3s")
        have_faults(unit.host, "checkpoint delay 9000")
        check_in(told, unit.refuse("checkpoint", "--mode", "snapshot"), wanted)
        have_faults(unit.host)
        if wanted == "kill":
            break
        wait_for(lambda: len(unit.device_files()) == 1, "the driver comes to the end of what it was told")
        unit.check_no_trace(wanted)
        left = [str(one[3]) for one in since if f"{one[3]}-{FIRST}" not in unit.device_files()]
        for action in ("restore", "unlock"):
            unit.host.run("env", f"LD_LIBRARY_PATH={HOME}", f"{HOME}/cuda-checkpoint", "--action", action, "--pid", *left)
        unit.check_counts(wanted, since)
    wait_for(lambda: any(not unit.host.exists(f"/proc/{one[3]}") for one in since), "one is killed")
    policy(unit.host, enabled="yes")
    unit.host.sh(f"systemctl stop {unit.unit}; rm -f {MEMORY}/[0-9]*")
    unit.start()
    unit.check_no_trace("killed")


class Several(Program):
    template, processes = "several", 4


@case
def the_time_of_the_phase_is_that_of_all_processes(t):
    """The driver hangs in one of them when others have used up some of it: what the policy says of that one comes before the
    end of the worker."""
    host = program(t).host
    have_driver(host, BEFORE_STORAGE)
    host.write("/etc/systemd/system/several@.service",
               f"[Service]\n{EMULATED}ExecStart={HOME}/cuda-counter {STATUS}-%i {Several.processes} 2\n")
    host.run("systemctl", "daemon-reload")
    unit = Several(host, "s").start()
    for wanted, told in (("leave", "it is left as it is"), ("kill", "it is ended"))[0 if SOAK else 1:]:
        since = unit.look()
        late = max(one[3] for one in since)
        policy(host, timeouts="{devices: 8s}", on_timeout=wanted)
        have_faults(host, "checkpoint delay 300", f"checkpoint hang 1 {late}")
        said = unit.refuse("checkpoint")
        for part in (f"pid {late} (CUDA): the driver did not checkpoint it in time; {told}", "raise timeouts.devices"):
            check_in(part, said, wanted)
        unit.numbers = [number for number, one in zip(unit.numbers, since) if one[3] != late]
        unit.check_counts(f"{wanted}: the others", [one for one in since if one[3] != late])
        have_faults(host)
        if wanted == "leave":
            wait_for(lambda: len([f for f in unit.device_files() if f.startswith(f"{late}-")]) == 0, "the driver comes to its end")
            unit.check_no_trace(wanted)
            for action in ("restore", "unlock"):
                host.run("env", f"LD_LIBRARY_PATH={HOME}", f"{HOME}/cuda-checkpoint", "--action", action, "--pid", str(late))
            unit.numbers = [str(number) for number in range(unit.processes)]
            unit.check_counts("brought back by hand", since)
    wait_for(lambda: "(zombie)" in host.read(f"/proc/{late}/status"), "it is killed")  # its parent does not look
    unit.check_no_trace(wanted)
    policy(host, enabled="yes")
    forget_images(unit)
    host.sh(f"systemctl stop {unit.unit}; rm -f " + " ".join(f"{MEMORY}/{one[3]}-*" for one in since))


@case
def a_restore_in_which_the_driver_hangs(t):
    """It fails at the end of the phase, by the plugin's word, and leaves nothing."""
    unit = program(t)
    have_driver(unit.host, BEFORE_STORAGE)
    since = unit.look()
    unit.crctl("checkpoint")
    policy(unit.host, timeouts="{devices: 6s}")
    have_faults(unit.host, "restore hang")
    check_in("(CUDA): the driver did not restore it in time", unit.refuse("restore"), "what is told")
    have_faults(unit.host)
    wait_for(lambda: unit.host.unit(unit.unit)["ActiveState"] == "inactive", "inactive")
    unit.check_no_trace("the driver hung")
    unit.host.sh(f"rm -f {MEMORY}/[0-9]*")
    policy(unit.host, enabled="yes")
    unit.crctl("restore")
    unit.check_counts("restored in the end", since)


# Asks the helper what the plugin does, and leaves in the middle: plugins/cuda/message.h.
LEAVES = """import os, socket, struct, subprocess, sys
LOCK, MAP, COPY, WAIT = 5, 9, 11, 12
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
helper = subprocess.Popen(["/usr/libexec/checkpointd/checkpointd-cuda", "--fd", str(theirs.fileno())], pass_fds=[theirs.fileno()])
theirs.close()
def ask(operation, pid):
    ours.send(struct.pack("<IIiII1024xI1024x", 2, operation, pid, 5000, 0, 0))
    return struct.unpack_from("<Iii", ours.recv(8192))[1]
for pid in map(int, sys.argv[1:]):
    print([ask(operation, pid) for operation in (LOCK, MAP, COPY, WAIT)])
ours.close()
sys.exit(helper.wait())
"""


@case
def a_helper_of_its_own(t):
    """Without checkpointd-cuda.socket there is one per job, which would die with it: device memory goes to files only
    where the policy says so. Left alone in the middle it brings back what it has."""
    unit = program(t)
    have_driver(unit.host, STORAGE)
    unit.host.sh(f"systemctl stop checkpointd-cuda.socket; systemctl set-environment LD_LIBRARY_PATH={HOME}")
    for storage, files in (("auto", 0), ("custom", 2)):
        policy(unit.host, storage=storage)
        forget_images(unit)
        since = unit.look()
        unit.crctl("checkpoint")
        check_equal(len(storage_files(unit)), files, f"files of device memory, storage: {storage}")
        unit.crctl("restore")
        unit.check_counts(f"storage: {storage}", since)
    pids = [str(process[3]) for process in since]
    told = unit.host.run("env", f"LD_LIBRARY_PATH={HOME}", "python3", "-c", LEAVES, *pids)
    check_equal(told.out.splitlines(), ["[0, 0, 0, 0]"] * 2, "what the driver answered")
    unit.check_counts("left alone", since)
    unit.host.sh("systemctl unset-environment LD_LIBRARY_PATH; systemctl start checkpointd-cuda.socket")
    policy(unit.host, enabled="yes")


# Asks the helper for its version, and stays connected.
STAYS = """import socket, struct, sys, time
helper = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
helper.connect("/run/checkpointd/cuda")
helper.send(struct.pack("<IIiII1024xI1024x", 2, 0, 0, 0, 0, 0))
helper.recv(8192)
open("/run/stays", "w").close()
time.sleep(1000)
"""


@case
def a_helper_that_is_told_to_stop(t):
    """It serves others as long as it has to stay. Where nobody accepts what connects, the job has a helper of its own."""
    unit = program(t)
    have_driver(unit.host, STORAGE)
    unit.host.run("systemd-run", "-q", "-u", "stays", "python3", "-c", STAYS)
    wait_for(lambda: unit.host.exists("/run/stays"), "somebody is connected")
    unit.host.sh("systemctl stop --no-block checkpointd-cuda.service")
    wait_for(lambda: unit.host.unit("checkpointd-cuda.service")["ActiveState"] == "deactivating", "it is told")
    forget_images(unit)
    unit.crctl("checkpoint", "--mode", "snapshot")
    since = unit.check_counts("by a helper that stops")
    check_equal(len(storage_files(unit)), 2, "files of device memory, which a helper of its own does not make")
    unit.host.sh("systemctl stop stays.service; rm /run/stays")
    wait_for(lambda: unit.host.unit("checkpointd-cuda.service")["ActiveState"] == "inactive", "it ends")
    unit.host.drop_in("checkpointd-cuda.service", "[Service]\nExecStart=\nExecStart=false\n", "dead")
    unit.host.sh(f"systemctl set-environment LD_LIBRARY_PATH={HOME}")
    unit.crctl("checkpoint", "--mode", "snapshot")
    unit.check_counts("beside a helper that ends at once", since)
    unit.host.sh("rm /etc/systemd/system/checkpointd-cuda.service.d/dead.conf; systemctl daemon-reload; systemctl unset-environment "
                 "LD_LIBRARY_PATH; systemctl reset-failed checkpointd-cuda.service checkpointd-cuda.socket; systemctl start checkpointd-cuda.socket")


@case
def with_the_system(t):
    """A helper that is there when the system goes down takes both units to disk, and ends after that."""
    units = [program(t, name) for name in "ab"]
    host = units[0].host
    have_driver(host, STORAGE)
    host.write("/etc/checkpointd/policy.d/down.yaml", 'units: {"gpu@*.service": {checkpoint-at-shutdown: yes}}\n')
    host.run("crctl", "policy", "reload")
    units[0].crctl("checkpoint", "--mode", "snapshot")
    for unit in units:
        forget_images(unit)
    wait_for(lambda: host.unit("checkpointd-shutdown.service")["ActiveState"] == "active", "the unit that is stopped first")
    since = [unit.look() for unit in units]
    host.reboot()
    check_equal(len(storage_files(units[0])), 4, "files of device memory")
    host.sh("rm /etc/checkpointd/policy.d/down.yaml")
    have_devices(host)
    have_driver(host, STORAGE)
    host.sh("mkdir -p /run/checkpointd; touch /run/checkpointd/allow-faults; crctl policy reload")
    for unit, was in zip(units, since):
        unit.crctl("restore")
        unit.check_counts("after the system went down", was)
    host.run("systemctl", "stop", units[1].unit)


@contextlib.contextmanager
def script(results, *options):
    run = subprocess.Popen([harness.TOP / "tests/gpu/run", "--emulated", "--mib", "8", "--no-build", "--output", results, *options],
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield run
    finally:
        run.terminate()
        run.wait(timeout=120)


def text_of(path):
    return path.read_text() if path.exists() else ""


@case
def the_script_for_real_devices(t):
    """What tests/gpu/run does on hardware, on the emulation: so it does not rot. One proof fails, and the others are made."""
    del t
    with tempfile.TemporaryDirectory() as folder:
        results = pathlib.Path(folder, "results.md")
        with script(results, "--fault", "command=checkpoint fail 2", "--images", f"{folder}/images") as run:
            wait_for(lambda: run.poll() is not None or "### timeout: under way" in text_of(results), "the second proof", 120)
            check_in("### counter: proven", text_of(results), "results so far")
            out, _ = run.communicate(timeout=400)
        check_equal(run.returncode, 1, f"exit code ({out})")
        for part in ("GPU: Emulated GPU 0", "driver: CUDA 13.0", f"images lie in {folder}/images", "### counter: proven",
                     "checkpoint: checkpoint.devices |", "### timeout: proven", "left the program running and unlocked", "### training: proven",
                     "bit for bit", "### command: FAILED", "CUDA_ERROR_OUT_OF_MEMORY", "### peer: proven", "of both (back on it) |"):
            check_in(part, text_of(results), "results")


@case
def the_script_is_ended(t):
    """What was known by then stays, and nothing else."""
    del t
    with tempfile.TemporaryDirectory() as folder:
        results = pathlib.Path(folder, "results.md")
        with script(results, "--only", "counter") as run:
            wait_for(lambda: run.poll() is not None or "### counter: under way" in text_of(results), "the first proof", 120)
            run.terminate()
            out, _ = run.communicate(timeout=120)
        for part in ("### test host: proven", "### counter: BROKEN OFF"):
            check_in(part, text_of(results), f"results ({out})")
        check(harness.Host("gpu-run-a").name not in harness.run_here(harness.DEV, "testhost", "list").out, "its test host is gone")


@case
def by_the_command(t):
    """cuda-checkpoint in the place of the driver's calls."""
    unit = program(t)
    command = {"backend": "command", "command": f"{HOME}/cuda-checkpoint"}
    policy(unit.host, **command)
    unit.crctl("checkpoint", "--mode", "snapshot")
    since = unit.check_counts("snapshot by the command")
    unit.crctl("checkpoint")
    unit.crctl("restore")
    unit.check_counts("restored by the command", since)
    policy(unit.host, **command, lock_timeout="1s", checkpoint_timeout="1s")
    for fault in ("lock fail 401", "checkpoint fail 2", "checkpoint delay 3000"):
        have_faults(unit.host, fault)
        unit.refuse("checkpoint")
        have_faults(unit.host)
        unit.check_counts(f"by the command, {fault}")
        unit.check_no_trace(f"by the command, {fault}")
    policy(unit.host, **command)
    unit.refuse("checkpoint", "--x-fault", "step=checkpoint.memory,action=kill")
    unit.check_counts("by the command, worker killed")
    policy(unit.host, enabled="yes")


@case
def by_the_command_that_tells_of_no_memory(t):
    """libnvidia-ml.so.1 does; without it, it is said that nobody has looked."""
    unit = program(t)
    command = {"backend": "command", "command": f"{HOME}/cuda-checkpoint"}
    have_driver(unit.host, BEFORE_STORAGE)
    policy(unit.host, **command)
    unit.host.sh("mount -t tmpfs tmpfs /proc/driver; mkdir -p /proc/driver/nvidia/capabilities/gpu0/mig/gi1")
    check_in("whether there is memory enough was not looked at", unit.refuse("checkpoint"), "without libnvidia-ml.so.1")
    unit.host.sh(f"umount /proc/driver; systemctl set-environment LD_LIBRARY_PATH={HOME}")
    have_devices(unit.host, FIRST, OTHER)
    unit.host.sh(f"systemctl stop {unit.unit}; rm -f {MEMORY}/[0-9]*")
    since = unit.start().look()
    of_one = f"{MEMORY}/{since[0][3]}-{FIRST}"
    size = unit.host.sh(f"stat -c %s {of_one}").out
    unit.host.write(f"{MEMORY}/.devices", f"{FIRST} 16000000\n{OTHER} 1024\n")
    unit.host.sh(f"truncate -s 8T {of_one}")
    told = unit.refuse("checkpoint")
    for part in ("host memory: has", "CUDA driver: is of CUDA 13.0 and has 2 devices"):
        check_in(part, told, "what is in the way")
    unit.host.sh(f"truncate -s {size.strip()} {of_one}")
    have_devices(unit.host, FIRST, OTHER)
    unit.crctl("checkpoint")
    unit.host.write(f"{MEMORY}/.devices", f"{FIRST} 10\n{OTHER} 10\n")
    check_in(f"{uuid(FIRST)}: has 10 MiB free of the", unit.refuse("restore"), "a device that is too small")
    have_devices(unit.host, FIRST, OTHER)
    policy(unit.host, device_map=f"{uuid(FIRST)}={uuid(OTHER)}", **command)
    unit.crctl("restore")
    unit.check_counts("on the other device", since)
    check_equal(sorted(unit.device_files()), sorted(f"{one[3]}-{OTHER}" for one in since), "device memory")
    policy(unit.host, enabled="yes")
    unit.host.sh(f"systemctl unset-environment LD_LIBRARY_PATH; systemctl stop {unit.unit}; rm {MEMORY}/.devices {MEMORY}/[0-9]*")


harness.main()
