#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The `criu` command carries devices as the service does: trees of processes on GPUs go down and come back, and whatever
ends the command, none stays locked or evicted. The drivers are emulations."""
import amdgpu_units
import gpu_units
import harness
from harness import case, check, check_equal, check_in
from trees import COMMAND, GROUP, IMAGES, cuda, kfd


@case
def cuda_down_and_up(t):
    tree = cuda(t)
    before = tree.look()
    tree.dump()
    tree.check_gone("dumped")
    check_equal(tree.device_files(), [], "device memory that is held")
    tree.restore()
    since = tree.check_counts("restored", before)
    tree.dump("--leave-running")
    tree.check_counts("left running", since)
    tree.check_clean("in the end")


@case
def cuda_left_stopped(t):
    tree = cuda(t)
    before = tree.look()
    tree.dump("--leave-stopped")
    for process in before:
        state = tree.host.read(f"/proc/{process[3]}/stat").split(")")[1].split()[0]
        check_equal(state, "T", f"state of pid {process[3]}")
    tree.check_clean("left stopped")
    tree.host.sh("kill -CONT " + " ".join(str(process[3]) for process in before))
    tree.check_counts("continued", before)


def check_failing_dumps(tree, have_faults, *faults):
    """Of each fault what is told, and the tree goes on as before."""
    for fault, options, told in faults:
        since = tree.look()
        have_faults(tree.host, fault)
        check_in(told, tree.refuse(tree.dump(*options, check=False), fault), fault)
        have_faults(tree.host)
        tree.check_counts(fault, since)
        tree.check_clean(fault)


@case
def cuda_that_fails_after_the_lock(t):
    check_failing_dumps(cuda(t), gpu_units.have_faults, ("checkpoint fail 2", (), "OUT_OF_MEMORY"),
                        ("checkpoint delay 5000", ("--timeout", "4"), "in time"),
                        ("lock delay 2500", ("--timeout", "2"), "in time"))


@case
def kfd_down_and_up(t):
    tree = kfd(t)
    before, buffers = tree.look(), tree.buffers()
    tree.dump()
    tree.check_gone("dumped")
    tree.check_device("dumped", running=False)
    tree.restore()
    tree.check_counts("restored", before)
    tree.check_mappings("restored", buffers)
    tree.check_clean("in the end")


@case
def checks_that_the_environment_switches_off(t):
    tree = kfd(t)
    before = tree.look()
    tree.dump()
    amdgpu_units.have_gpus(tree.host, *(gpu.replace(":64", ":48") for gpu in amdgpu_units.TWO))
    check_in("vram_size", tree.refuse(tree.restore(check=False), "smaller GPUs"), "what is told")
    told = tree.refuse(tree.restore(criu=f"env KFD_VRAM_SIZE_CHECK=perhaps {COMMAND}", check=False), "no switch")
    check_in("$KFD_VRAM_SIZE_CHECK: 'perhaps' is neither YES nor NO", told, "what is told")
    tree.restore(criu=f"env KFD_VRAM_SIZE_CHECK=0 {COMMAND}")
    tree.check_counts("on smaller GPUs", before)
    tree.host.sh(f"echo 1 >{GROUP}/cgroup.kill")
    amdgpu_units.have_gpus(tree.host, *amdgpu_units.TWO)


@case
def kfd_that_fails_when_queues_stand(t):
    check_failing_dumps(kfd(t), amdgpu_units.have_faults, ("checkpoint fail 12 2", (), "KFD's CHECKPOINT failed"),
                        ("copy-from fail 5 3", (), "Input/output error"))


@case
def a_command_that_is_killed_leaves_no_queue_evicted(t):
    tree = kfd(t)
    for how, wait in (("--timeout 4", "wait $!"), ("", "until grep -q 'evicted=[^0]' /run/kfd-emulated/control; do sleep 0.05; done; kill -9 $!; wait $!")):
        since = tree.look()
        tree.host.sh(f"rm -rf {IMAGES}; mkdir {IMAGES}")
        amdgpu_units.have_faults(tree.host, "checkpoint hang 0 1")
        outcome = tree.host.sh(f"{COMMAND} dump -t {tree.pid} -D {IMAGES} -o dump.log -v4 {how} & {wait}", check=False)
        check(outcome.code > 128, f"{how or 'kill'}: it is dead", outcome)
        amdgpu_units.have_faults(tree.host)
        tree.check_counts(how or "kill", since)
        tree.check_clean(how or "kill")
        check_in("what its plugins had done is undone", tree.host.read(f"{IMAGES}/dump.log"), "the log")


@case
def directories_of_plugins(t):
    tree = kfd(t)
    before = tree.look()
    host = tree.host
    host.sh("mkdir -p /var/tmp/none /var/tmp/others; cp /usr/lib/checkpointd-test-plugins/for_criu.so /var/tmp/others/amdgpu.so")
    check_in("/var/tmp/missing", tree.refuse(tree.dump("--libdir", "/var/tmp/missing", check=False), "no directory"), "what is told")
    tree.check_counts("refused", before)
    tree.dump("-L", "/usr/lib/checkpointd/plugins")
    for directory, told in (("/var/tmp/none", "plugin 'amdgpu': is not installed in /var/tmp/none"),
                            ("/var/tmp/others", "/var/tmp/others/amdgpu.so: is a plugin for CRIU")):
        outcome = tree.outside(f"CRIU_LIBS_DIR={directory} {COMMAND} restore -d -D {IMAGES} -o restore.log -v4", check=False)
        check_in(told, tree.refuse(outcome, directory), "what is told")
    check_in("/var/tmp/others/amdgpu.so is a plugin for CRIU, and is left out", host.read(f"{IMAGES}/restore.log"), "the log")
    tree.restore("--libdir", "/usr/lib/checkpointd/plugins")
    tree.check_counts("restored in the end", before)


@case
def a_tree_without_devices_needs_no_plugin(t):
    host = t.host()
    host.sh(f"mkdir -p {GROUP} /var/tmp/none; rm -rf {IMAGES}; mkdir {IMAGES}")
    pid = int(host.sh(f"echo $$ >{GROUP}/cgroup.procs; setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $!").out)
    host.run(COMMAND, "dump", "-t", str(pid), "-D", IMAGES)
    host.sh(f"echo $$ >{GROUP}/cgroup.procs; {COMMAND} restore -d -D {IMAGES} -L /var/tmp/none </dev/null >/dev/null")
    check_equal(host.read(f"/proc/{pid}/comm"), "sleep\n", "what has its PID")
    host.sh(f"kill {pid}")


harness.main()
