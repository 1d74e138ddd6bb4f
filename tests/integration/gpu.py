#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Units that compute on a GPU go to disk and come back, and are never left locked. The driver is an emulation."""
import harness
from gpu_units import FIRST, HOME, MEMORY, OTHER, have_devices, have_faults, policy, program, uuid
from harness import case, check, check_equal, check_in, wait_for

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


harness.main()
