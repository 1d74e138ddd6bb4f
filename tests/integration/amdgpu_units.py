# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs on the emulated AMD GPUs of tests/gpu/kfd, for amdgpu.py. The driver is a file system (kfd-emulator); the
programs' calls on /dev/kfd and the plugin's, their mappings and all of the engine are real."""
import os
import re

from gpu_units import Program
from harness import Skip, check, check_equal, wait_for

HOME = "/usr/lib/checkpointd-test-gpu"
FOLDER = "/run/kfd-emulated"
PLUGIN = "/usr/lib/checkpointd/plugins/amdgpu.so"
TWO = ("0x1001:128:64", "0x1002:129:64")
OTHERS = ("0x2001:140:96", "0x2002:141:96")
PROCESSES = 2
UNIT = f"""[Service]
ExecStart={HOME}/kfd-counter /var/tmp/kfd-%i {PROCESSES} 2 lend
"""
VISIBLE = 0x2 | 0x20000000  # GTT, or public VRAM: what the program maps


class GpuProgram(Program):
    template, status, rounds = "kfd", "/var/tmp/kfd", 10

    def driver(self, what):
        """What the driver knows: of each line of a kind its words, "key=value" as a dictionary."""
        lines = [line.split() for line in self.host.read(f"{FOLDER}/control").splitlines()]
        return [dict(pair.split("=", 1) for pair in words[2:]) | {"of": int(words[1])} for words in lines if words[0] == what]

    def check_device(self, when, running=True):
        """Queues run (`running`: of as many processes), and no dma-buf is left."""
        wait_for(lambda: not self.driver("dmabuf"), f"{when}: no dma-buf is left")
        count = PROCESSES if running else 0
        wait_for(lambda: len(self.programs()) == count, f"{when}: the driver knows {count} processes with queues")
        for one in self.programs():
            check_equal((one["evicted"], one["paused"], one["blocked"]), ("0", "0", "0"), f"{when}: queues of {one['of']}")
        check(all(queue["failed"] == "0" for queue in self.driver("queue")), f"{when}: page faults of the device")

    def programs(self):
        """Processes with queues; the worker of a job is one of the driver's as well, for as long as it lives."""
        users = {queue["of"] for queue in self.driver("queue")}
        return [one for one in self.driver("process") if one["of"] in users or one["evicted"] != "0"]

    def check_counts(self, when, since=None):
        now = super().check_counts(when, since)
        self.check_device(when)
        return now

    def check_down(self, when):
        state = self.host.unit(self.unit)
        check_equal((state["ActiveState"], state["Result"]), ("inactive", "success"), f"{when}: the unit")
        self.check_device(when, running=False)

    def descriptors(self):
        """Of each process of the unit: where its descriptors lead."""
        return self.host.sh(f"for pid in $(cat /sys/fs/cgroup/$(systemctl show {self.unit} -p ControlGroup --value)/cgroup.procs); "
                            "do for fd in $(ls /proc/$pid/fd); do echo $pid $fd $(readlink /proc/$pid/fd/$fd); done; done").out

    def buffers(self):
        """Of each buffer object (process, GPU as the program calls it, handle): its address, size, place to map it from."""
        users = {(one["of"], one["gpu"]): one["user"] for one in self.driver("device")}
        return {(one["of"], users[one["of"], one["gpu"]], one["handle"]): one for one in self.driver("buffer")}

    def check_mappings(self, when, before):
        """Each process maps what it mapped, at the same addresses, from where the driver has it now."""
        now = self.buffers()
        for key, buffer in now.items():
            check_equal((buffer["address"], buffer["size"], buffer["flags"]),
                        tuple(before[key][name] for name in ("address", "size", "flags")), f"{when}: buffer {key}")
            if int(buffer["flags"], 16) & VISIBLE:
                check(buffer["offset"] != before[key]["offset"], f"{when}: buffer {key} has another place", buffer)
                self.check_mapping(when, buffer)
        check_equal(set(now), set(before), f"{when}: buffers")

    def check_mapping(self, when, buffer):
        maps = self.host.read(f"/proc/{buffer['of']}/maps")
        address = int(buffer["address"], 16)
        found = re.search(rf"^{address:x}-{address + int(buffer['size']):x} rw-s ([0-9a-f]+) .*/dev/dri/renderD", maps, re.M)
        check(found and int(found.group(1), 16) == int(buffer["offset"], 16), f"{when}: mapping of {buffer}", maps)


def have_gpus(host, *gpus, cpus=1):
    """The machine's devices from now on; none: there is no such driver."""
    host.sh(f"for f in /dev/kfd /dev/dri/renderD*; do umount -q $f || true; rm -f $f; done; "
            f"systemctl stop kfd-emulated.service 2>/dev/null || true; umount -q {FOLDER} || true; mkdir -p {FOLDER}; "
            "test -e /dev/fuse || mknod -m 666 /dev/fuse c 10 229; mkdir -p /dev/dri; "
            f"mountpoint -q {PLUGIN} || mount --bind {HOME}/amdgpu.so {PLUGIN}")
    if gpus:
        host.run("systemd-run", "--quiet", "--collect", "-u", "kfd-emulated", f"{HOME}/kfd-emulator", FOLDER, str(cpus), *gpus)
        host.sh(f"for i in {{1..3000}}; do test -e {FOLDER}/kfd && break; sleep 0.02; done; cd {FOLDER}; "
                "for f in kfd renderD*; do to=/dev/$f; [ $f = kfd ] || to=/dev/dri/$f; touch $to; mount --bind $f $to; done")


def have_faults(host, *lines):
    host.write(f"{FOLDER}/control", "".join(f"{line}\n" for line in lines) or "\n")


def policy(host, **settings):
    text = ", ".join(f"{key}: {value}" for key, value in settings.items())
    host.write("/etc/checkpointd/policy.yaml", f"version: 1\ndefaults: {{{text}}}\n")
    host.run("crctl", "policy", "reload")


_programs = {}


def program(t):
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise Skip("no /dev/fuse, which the emulated devices are made of")
    host = t.host()
    if not _programs:
        have_gpus(host, *TWO)
        host.write("/etc/systemd/system/kfd@.service", UNIT)
        host.sh("mkdir -p /run/checkpointd; touch /run/checkpointd/allow-faults; systemctl daemon-reload")
        _programs["a"] = GpuProgram(host)
    if host.unit(_programs["a"].unit)["ActiveState"] != "active":
        _programs["a"].start()
    return _programs["a"]
