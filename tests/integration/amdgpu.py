#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Units that compute on AMD GPUs go to disk and come back, on the same GPUs and on others; their queues are never left
evicted. The driver is an emulation."""
import re

import harness
from amdgpu_units import HOME, OTHERS, PROCESSES, TWO, have_faults, have_gpus, policy, program
from harness import SOAK, case, check, check_equal, check_in, wait_for


@case
def down_and_up(t):
    unit = program(t)
    before, buffers, descriptors = unit.look(), unit.buffers(), unit.descriptors()
    check(descriptors.count("/dev/kfd") == PROCESSES + 1, "one process has inherited a /dev/kfd", descriptors)
    unit.crctl("checkpoint")
    unit.check_down("checkpoint")
    unit.crctl("restore")
    unit.check_counts("restored", before)
    check_equal(re.sub(r"\[\d+\]", "[N]", unit.descriptors()), re.sub(r"\[\d+\]", "[N]", descriptors), "descriptors")
    unit.check_mappings("restored", buffers)


@case
def serially(t):
    unit = program(t)
    policy(unit.host, plugins="{amdgpu: {parallel: no}}")
    before, buffers = unit.look(), unit.buffers()
    unit.crctl("checkpoint")
    unit.crctl("restore")
    unit.check_counts("restored one after the other", before)
    unit.check_mappings("restored one after the other", buffers)
    policy(unit.host)


@case
def snapshot_and_suspend(t):
    unit = program(t)
    unit.crctl("checkpoint", "--mode", "snapshot")
    before = unit.check_counts("snapshot")
    unit.crctl("checkpoint", "--mode", "suspend")
    unit.check_device("suspended", running=False)
    unit.crctl("restore")
    unit.check_counts("resumed", before)


@case
def down_reboot_and_up_on_other_gpus(t):
    """Other ids, other minor numbers, more memory; and from there back again."""
    unit = program(t)
    before, buffers = unit.look(), unit.buffers()
    unit.crctl("checkpoint")
    unit.host.reboot()
    unit.host.sh("mkdir -p /run/checkpointd; touch /run/checkpointd/allow-faults")
    have_gpus(unit.host, *OTHERS, cpus=2)
    unit.crctl("restore")
    since = unit.check_counts("on other GPUs", before)
    unit.check_mappings("on other GPUs", buffers)
    unit.crctl("checkpoint")
    have_gpus(unit.host, *(gpu.replace(":64", ":96") for gpu in reversed(TWO)))
    unit.crctl("restore")
    unit.check_counts("on the first ones", since)
    unit.check_mappings("on the first ones", buffers)
    unit.host.run("systemctl", "stop", unit.unit)
    have_gpus(unit.host, *TWO)


@case
def machines_that_will_not_do(t):
    unit = program(t)
    before = unit.look()
    unit.crctl("checkpoint")
    for gpus, told in (((TWO[0],), "the image has 2, and 1 can be seen here"),
                       ((*TWO, "0x1003:130:64"), "the image has 2, and 3 can be seen here"),
                       (tuple(f"{gpu}:0:0x7408" for gpu in TWO), "device_id is 29704, 29708 is wanted"),
                       (tuple(gpu.replace(":64", ":4") for gpu in TWO), "vram_size is 4194304"),
                       ((), "its device is not here")):
        have_gpus(unit.host, *gpus)
        answer = unit.refuse("restore").splitlines()
        check_in(told, "\n".join(answer), f"GPUs {gpus}")
        check_equal(len(set(answer)), len(answer), f"GPUs {gpus}: each reason is told once")
        check(unit.host.unit(unit.unit)["ActiveState"] == "inactive", f"{gpus}: nothing was started")
    have_gpus(unit.host, *TWO)
    unit.crctl("restore")
    unit.check_counts("in the end", before)


@case
def gpus_that_others_have_taken(t):
    """Both are named, with numbers, and nothing was started; when they are free again, the same image does."""
    unit = program(t)
    before = unit.look()
    unit.crctl("checkpoint")
    unit.host.run("systemd-run", "--quiet", "--collect", "-u", "kfd-hog", f"{HOME}/kfd-counter", "/var/tmp/kfd-hog", "1", "60")
    wait_for(lambda: sum(int(one["vram"]) > 60 << 20 for one in unit.driver("device")) == 2, "GPUs are taken")
    since = unit.host.unit(unit.unit, "InactiveExitTimestampMonotonic", "ActiveState")
    answer = unit.refuse("restore")
    for gpu in ("0x1001", "0x1002"):
        check_in(f"GPU {gpu}: has 2 MiB free of the 5 MiB that the image needs", answer, "what is told")
    check_equal(unit.host.unit(unit.unit, *since), since, "the unit was not started")
    check_equal(len({one["of"] for one in unit.driver("queue")}), 1, "processes with queues: the other one's")
    unit.host.run("systemctl", "stop", "kfd-hog.service")
    unit.crctl("restore")
    unit.check_counts("when they are free again", before)


@case
def a_unit_that_used_no_gpu_needs_none(t):
    """An image of a machine with GPUs whose unit did not use them."""
    unit = program(t)
    unit.host.run("systemctl", "stop", unit.unit)
    unit.host.run("systemctl", "start", "counter.service")
    unit.host.run("crctl", "checkpoint", "counter.service")
    have_gpus(unit.host)
    unit.host.run("crctl", "restore", "counter.service")
    unit.host.run("systemctl", "stop", "counter.service")
    have_gpus(unit.host, *TWO)


@case
def whatever_the_driver_answers_to_a_checkpoint(t):
    unit = program(t)
    faults = {"process-info fail 5 1": "PROCESS_INFO failed: Input/output error",
              "checkpoint fail 12 2": "CHECKPOINT failed: Cannot allocate memory",
              "copy-from fail 5 3": "emulated copy engine", "unpause fail-after 5 1": "UNPAUSE failed: Input/output error"}
    if SOAK:  # None: it does without
        faults |= {"open fail 12 1": None, "open fail 12 2": "/dev/kfd: cannot be opened",
                   "process-info fail 5 2": "PROCESS_INFO failed", "process-info fail-after 5 2": "PROCESS_INFO failed",
                   "checkpoint fail 5 1": "CHECKPOINT failed", "copy-from fail 5 1": "emulated copy engine",
                   "unpause fail 5 1": "UNPAUSE failed"}
    images = lambda: unit.host.run("crctl", "--json", "list", unit.unit).json()
    for fault, told in faults.items():
        since, before = unit.look(), images()
        have_faults(unit.host, fault)
        outcome = unit.crctl("checkpoint", "--mode", "snapshot", check=False)
        have_faults(unit.host)
        check_equal(outcome.code == 0, told is None, f"{fault}: it goes well ({outcome.err})")
        check_in(told or "", outcome.err, f"{fault}: what is told")
        if told is not None:
            check_equal(images(), before, f"{fault}: images")
        unit.check_counts(fault, since)
        unit.check_no_trace(fault)


@case
def a_driver_that_does_not_answer(t):
    """The worker is ended in the middle of a call, which is done nevertheless."""
    unit = program(t)
    policy(unit.host, timeouts="{devices: 1s}")
    for fault in ("process-info hang 0 2", "checkpoint hang 0 1", "unpause hang 0 1") if SOAK else ("process-info hang 0 2",):
        since = unit.look()
        have_faults(unit.host, fault)
        unit.refuse("checkpoint", "--mode", "snapshot")
        have_faults(unit.host)
        unit.check_counts(fault, since)
        unit.check_no_trace(fault)
    policy(unit.host)


@case
def a_dead_worker_leaves_no_queue_evicted(t):
    unit = program(t)
    steps = ["checkpoint.devices", "checkpoint.collect", "checkpoint.memory"]
    if SOAK:
        steps = ["checkpoint.quiesce", "checkpoint.freeze", *steps, "checkpoint.files", "checkpoint.write",
                 "checkpoint.finish", "checkpoint.commit"]
    unit.check_dead_workers((step, action) for step in steps for action in (("kill", "fail") if SOAK else ("kill",)))
    since = unit.look()
    unit.refuse("checkpoint", "--mode", "snapshot", "--x-fault", "step=checkpoint.resume-devices,action=kill")
    unit.check_counts("killed while the devices are resumed", since)


@case
def a_restore_that_fails_leaves_nothing(t):
    unit = program(t)
    since = unit.look()
    unit.crctl("checkpoint")
    faults = ["restore fail 12 2", "copy-to fail 5 3", "resume fail 5 2"]
    if SOAK:
        faults += ["open fail 12 2", "open fail 12 3", "open fail 12 4", "open fail 12 5", "restore fail 22 1", "copy-to fail 5 1",
                   "resume fail 3 1", "resume fail 5 1"]
    for fault in faults:
        have_faults(unit.host, fault)
        outcome = unit.crctl("restore", check=False)
        have_faults(unit.host)
        check(outcome.code != 0, f"{fault}: the restore is refused", outcome)
        unit.check_down(fault)
    for step in ("restore.devices", "restore.complete-devices", "restore.resume-devices", "restore.memory", "restore.commit") if SOAK else \
                ("restore.memory", "restore.resume-devices"):
        for action in ("kill", "fail") if SOAK else ("kill",):
            unit.refuse("restore", "--x-fault", f"step={step},action={action}")
            wait_for(lambda: unit.host.unit(unit.unit)["ActiveState"] == "inactive", f"{step}: inactive")
            unit.check_device(f"{step} {action}", running=False)
            unit.check_no_trace(f"{step} {action}")
    unit.crctl("restore")
    unit.check_counts("restored in the end", since)


harness.main()
