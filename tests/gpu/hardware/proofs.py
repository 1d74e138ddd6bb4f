# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is proven on a GPU, one thing after the other, each by itself."""
import json
import pathlib
import re

import gpu_units
import trees
from harness import Skip, check, check_equal, check_in, wait_for

PROGRAM = "/var/tmp/training.py"  # in the test host
TRAINING = f"{pathlib.Path(__file__).with_name('training.py')}:{PROGRAM}"
STEPS = 100  # before it is taken, and after
LOGS = "/var/tmp/training"
SHORT_USEC = 5000  # steps that take less are left out
# Steps that move what was in device memory.
MOVING = re.compile("device|memory|transfer|commit|finish")


def evidence(host):
    """What tells why something failed."""
    return host.sh("journalctl -b -n 40 --no-pager -o short-monotonic -u 'checkpointd*' -u 'gpu@*' -u 'training@*'; "
                   "tail -n 5 /var/tmp/criu-images/*.log 2>/dev/null; "
                   "dmesg 2>/dev/null | grep -E 'NVRM|Xid|nvidia' | tail -n 20", check=False).out


class Stage:
    """A test host whose units see the GPU."""

    def __init__(self, host, unit, mib, libraries, torch):
        """`libraries`: the folder of the driver's; `torch`: python_with_torch()."""
        self.host, self.unit, self.mib, self.libraries, self.torch = host, unit, mib, libraries, torch
        self.emulated = libraries == gpu_units.HOME

    def clean(self):
        """For the next proof: no faults, no settings, all fresh."""
        if self.emulated:
            gpu_units.have_faults(self.host)
        gpu_units.policy(self.host, enabled="yes")
        self.host.sh("systemctl stop 'gpu@*.service' 'training@*.service' || true; rm -rf /var/lib/checkpointd/*.service/*; "
                     f"mkdir -p {trees.GROUP}; echo 1 >{trees.GROUP}/cgroup.kill; rm -rf {trees.IMAGES}")

    def run_job(self, proof, verb, unit, mib, *options):
        """Its result; the proof gets the times of its phases."""
        job = self.host.run("crctl", "--json", verb, unit, *options, timeout=600).json()
        result = json.loads(self.host.read(f"/run/checkpointd/jobs/{job['Id']}/result.json"))
        title = " ".join([verb, *options])
        proof.took(f"**{title}**, in all", result["total_usec"] / 1e6, mib)
        for step in result["steps"]:
            if step["usec"] >= SHORT_USEC:
                proof.took(f"{title}: {step['step']}", step["usec"] / 1e6, mib if MOVING.search(step["step"]) else 0)
        if verb == "checkpoint":
            proof.say(f"{title}: frozen {result['frozen_usec'] / 1e6:.3f} s, {result['bytes']} bytes of images")
        return job


def prove_counter(stage, proof):
    """Down and up, and a snapshot."""
    unit, mib = stage.unit.start(), 2 * stage.mib
    since = unit.look()
    stage.run_job(proof, "checkpoint", unit.unit, mib)
    stage.run_job(proof, "restore", unit.unit, mib)
    unit.check_counts("restored", since)
    proof.say(f"two processes with {stage.mib} MiB each came back with the right numbers and their PIDs")
    stage.run_job(proof, "checkpoint", unit.unit, mib, "--mode", "snapshot")
    unit.check_counts("snapshot", since)
    files = stage.host.sh("find /var/lib/checkpointd -name 'gpu-cs-*'").out.split()
    proof.say(f"device memory was copied by {'checkpointd-cuda, to files' if files else 'the driver, to memory of the processes'}")


def prove_timeout(stage, proof):
    """The shortest time that the policy takes: a real driver is done with nothing before it has passed."""
    unit = stage.unit.start()
    gpu_units.policy(stage.host, checkpoint_timeout="100ms" if stage.emulated else "1ms")
    if stage.emulated:
        gpu_units.have_faults(stage.host, "checkpoint delay 500")
    since = unit.look()
    outcome = stage.host.run("crctl", "--json", "checkpoint", unit.unit, check=False, timeout=180)
    check(outcome.code != 0, "it runs out of time", outcome)
    job = outcome.json()
    check_equal(job["ErrorName"], "org.checkpointd1.Error.Timeout", f"the error ({job['ErrorMessage']})")
    check_in("in time", job["ErrorMessage"], "what is told")
    proof.say(f"told, in {job['Phase']}: {job['ErrorMessage'].splitlines()[0]}")
    unit.check_counts("after a timeout", since)
    unit.check_no_trace("after a timeout")
    for process in since:
        check_equal(ask_command(stage, "--get-state", "--pid", process[3]), "running", f"state of process {process[3]}")
    proof.say("a checkpoint that timed out left the program running and unlocked, with the right numbers")


def prove_training(stage, proof):
    """Two that learn the same, of which one goes to disk and back half way."""
    kind = "emulated" if stage.emulated else "torch"
    if kind == "torch" and stage.torch is None:
        raise Skip("no Python here imports torch: install PyTorch, and run this with the Python that has it")
    python, folder, version, on_gpu = stage.torch if kind == "torch" else ("/usr/bin/python3", "/", "emulated", "True")
    check_equal(on_gpu, "True", f"PyTorch {version} finds the GPU")
    host = stage.host
    host.write("/etc/systemd/system/training@.service",
               f"[Service]\nEnvironment=LD_LIBRARY_PATH={stage.libraries} PYTHONPATH={folder} CUBLAS_WORKSPACE_CONFIG=:4096:8\n"
               f"ExecStart={python} {PROGRAM} {LOGS}-%i {kind}\n")
    host.sh(f"rm -f {LOGS}-*; systemctl daemon-reload; systemctl start training@moved.service training@still.service")

    def lines(which):
        return host.sh(f"cat {LOGS}-{which} 2>/dev/null || true").out.split("\n")[:-1]
    wait_for(lambda: len(lines("moved")) > STEPS, "it learns", 150)
    pid = host.main_pid("training@moved.service")
    stage.run_job(proof, "checkpoint", "training@moved.service", 0)
    taken = len(lines("moved"))
    stage.run_job(proof, "restore", "training@moved.service", 0)
    for which in ("moved", "still"):
        wait_for(lambda: len(lines(which)) >= taken + STEPS, f"the one that is {which} learns on", 150)
    check_equal(host.main_pid("training@moved.service"), pid, "PID")
    moved, still = (lines(which)[:taken + STEPS] for which in ("moved", "still"))
    check_equal(moved, still, "what each step told, of the one that was moved and the one that was not")
    losses = [float.fromhex(line.split()[1]) for line in moved]
    check(sum(losses[-10:]) < sum(losses[:10]) / 2, "it has learnt", losses)
    proof.say(f"{version}: taken after step {taken} of {len(moved)}, each loss and each sum of weights is that of a second one, bit for bit; "
              f"the loss fell from {losses[0]:.4g} to {losses[-1]:.4g}")


def command_of(stage):
    """NVIDIA's command, else ours, which makes the same calls."""
    return stage.host.sh("command -v cuda-checkpoint || true").out.strip() or f"{gpu_units.HOME}/cuda-checkpoint"


def ask_command(stage, *arguments):
    return stage.host.run("env", f"LD_LIBRARY_PATH={stage.libraries}", command_of(stage), *map(str, arguments), timeout=300).out.strip()


def tree_of(stage):
    tree = trees.CudaTree(stage.host, "tree")
    tree.libraries, tree.mib = stage.libraries, stage.mib
    return tree.start()


def prove_command(stage, proof):
    """Our `criu`, which needs no unit: the plugin does all that is of CUDA."""
    tree, mib = tree_of(stage), 2 * stage.mib
    since = tree.look()
    criu = f"env LD_LIBRARY_PATH={stage.libraries} {trees.COMMAND}"
    with proof.timed("criu dump", mib):
        tree.dump(criu=criu)
    check(stage.host.exists(f"{trees.IMAGES}/cuda-devices.json"), "the image has what the plugin has written")
    with proof.timed("criu restore", mib):
        tree.restore(criu=criu)
    tree.check_counts("by our criu", since)
    proof.say("the same two processes, which belong to no unit, came back with the right numbers")


def prove_peer(stage, proof, criu):
    """The same program by CRIU without any plugin, and cuda-checkpoint before and after it."""
    if criu is None:
        raise Skip("no criu here: install it, or name it by --criu FILE")
    tree, mib = tree_of(stage), 2 * stage.mib
    proof.say(f"{stage.host.sh(f'{criu} --version').out.split(chr(10))[0]}; {command_of(stage)}")
    since = tree.look()
    pids = [process[3] for process in since]

    def toggle():
        for pid in pids:
            ask_command(stage, "--toggle", "--pid", pid)
    stage.host.sh("mkdir -p /var/tmp/no-plugins")
    plain = f"env CRIU_LIBS_DIR=/var/tmp/no-plugins {criu}"
    with proof.timed("**checkpoint**, in all", mib):
        with proof.timed("cuda-checkpoint --toggle, of both (off the device)", mib):
            toggle()
        with proof.timed("criu dump", mib):
            tree.dump("--shell-job --libdir /var/tmp/no-plugins", criu=plain)
    with proof.timed("**restore**, in all", mib):
        with proof.timed("criu restore", mib):
            tree.restore("--shell-job --libdir /var/tmp/no-plugins", criu=plain)
        with proof.timed("cuda-checkpoint --toggle, of both (back on it)", mib):
            toggle()
    tree.check_counts("by the peer", since)
    for pid in pids:
        check_equal(ask_command(stage, "--get-state", "--pid", pid), "running", f"state of process {pid}")
    proof.say("its numbers are right, too")


def proofs(criu):
    return {"counter": prove_counter, "timeout": prove_timeout, "training": prove_training, "command": prove_command,
            "peer": lambda stage, proof: prove_peer(stage, proof, criu)}
