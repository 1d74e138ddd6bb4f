# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trees of processes on emulated GPUs that belong to no unit, for suites that call a `criu` command."""
import os

import amdgpu_units
import gpu_units
from harness import Skip, check, wait_for

COMMAND = "/usr/libexec/checkpointd/criu"
GROUP = "/sys/fs/cgroup/criu-command"  # what must outlive the command that started it
IMAGES = "/var/tmp/criu-images"


class Tree:
    """Processes that belong to no unit."""
    pid = 0

    def begin(self, *command):
        self.host.sh(f"mkdir -p {GROUP}; echo 1 >{GROUP}/cgroup.kill; rm -f {self.status}-{self.name}-*")
        wait_for(lambda: not self.host.read(f"{GROUP}/cgroup.procs"), "nothing is left of an earlier one")
        self.pid = int(self.outside(f"setsid {' '.join(command)} </dev/null >/dev/null 2>&1 & echo $!").out)
        self.check_counts("fresh")
        return self

    def outside(self, script, **options):
        """A script whose children live on."""
        return self.host.sh(f"echo $$ >{GROUP}/cgroup.procs; {script}", **options)

    def dump(self, *options, criu=COMMAND, images=IMAGES, check=True):
        """`criu`: which one, for a shell."""
        return self.host.sh(f"rm -rf {images}; mkdir {images}; {criu} dump -t {self.pid} -D {images} -o dump.log -v4 {' '.join(options)}",
                            check=check)

    def restore(self, *options, criu=COMMAND, check=True):
        return self.outside(f"{criu} restore -d -D {IMAGES} -o restore.log -v4 {' '.join(options)} </dev/null >/dev/null", check=check)

    def refuse(self, outcome, what):
        check(outcome.code != 0, f"{what}: it fails", outcome)
        return outcome.err

    def check_gone(self, when):
        check(not self.host.exists(f"/proc/{self.pid}"), f"{when}: the tree is gone")

    def check_clean(self, when):
        wait_for(lambda: not self.host.sh("ls -d /run/checkpointd-criu.* 2>/dev/null || true").out, f"{when}: no journal is left")


class CudaTree(Tree, gpu_units.Program):
    libraries, mib = gpu_units.HOME, 8  # where the driver's are; of each process

    def start(self):
        if self.libraries == gpu_units.HOME:
            gpu_units.have_devices(self.host)
        return self.begin("env", f"LD_LIBRARY_PATH={self.libraries}", f"{gpu_units.HOME}/cuda-counter", f"{self.status}-{self.name}",
                          "2", str(self.mib))


class KfdTree(Tree, amdgpu_units.GpuProgram):
    def start(self):
        return self.begin(f"{amdgpu_units.HOME}/kfd-counter", f"{self.status}-{self.name}", str(amdgpu_units.PROCESSES), "2")


def cuda(t):
    host = t.host()
    host.drop_in("checkpointd-cuda.service", f"[Service]\n{gpu_units.EMULATED}")
    return CudaTree(host, "tree").start()


def kfd(t):
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise Skip("no /dev/fuse, which the emulated devices are made of")
    host = t.host()
    if not host.exists("/dev/kfd"):
        amdgpu_units.have_gpus(host, *amdgpu_units.TWO)
    return KfdTree(host, "tree").start()
