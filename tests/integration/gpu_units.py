# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs on the emulated GPU of tests/gpu, for gpu.py and gpu_timeouts.py: the driver is the emulation, loaded by the
units and by checkpointd-cuda as the real one would be; all else is real."""
import json

import harness
from harness import check, check_equal, wait_for

HOME = "/usr/lib/checkpointd-test-gpu"
MEMORY = "/dev/nvidia-memory"
STATUS = "/var/tmp/gpu"
OTHER = "ffeeddccbbaa99887766554433221100"
FIRST = "00112233445566778899aabbccddeeff"
EMULATED = f"Environment=LD_LIBRARY_PATH={HOME}\n"


# What plugins add to the steps of a job; the last one down to those of a snapshot.
DOWN_STEPS = ("checkpoint.probe-devices", "checkpoint.quiesce", "checkpoint.devices", "checkpoint.resume-devices")
UP_STEPS = ("restore.devices", "restore.complete-devices", "restore.resume-devices")

LOOK = """import json, re, struct, sys, time
def look(path):
    rounds, wrong, failed, pid = struct.unpack("<4Q", open(path, "rb").read(32))
    return [rounds, wrong, failed, pid, re.search(r"TracerPid:\\t(\\d+)", open(f"/proc/{pid}/status").read()).group(1)]
first, end = None, time.monotonic() + 100
while True:
    try:
        now = [look(f"{sys.argv[1]}-{number}") for number in sys.argv[3:]]
        first = first or now
        if all(n[0] >= f[0] + int(sys.argv[2]) for n, f in zip(now, first)):
            break
    except (OSError, struct.error) as error:
        now = error
    if time.monotonic() > end:
        sys.exit(f"waited in vain for {sys.argv[2]} rounds of {sys.argv[1]}: {first} {now}")
    time.sleep(0.02)
print(json.dumps(now))
"""


def uuid(digits):
    return f"GPU-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


class Program:
    """cuda-counter with some processes, each with 8 MiB of device memory and numbers that a kernel counts up."""
    template, status, rounds, processes = "gpu", STATUS, 70, 2

    def __init__(self, host, name="a"):
        self.host, self.name, self.unit = host, name, f"{self.template}@{name}.service"
        self.numbers = [str(number) for number in range(self.processes)]  # of those that live

    def start(self):
        self.host.sh(f"systemctl stop {self.unit}; systemctl reset-failed {self.unit} 2>/dev/null || true; "
                     f"rm -f {self.status}-{self.name}-*; systemctl start {self.unit}")
        wait_for(lambda: self.host.exists(f"{self.status}-{self.name}-0") or self.host.unit(self.unit)["ActiveState"] != "active", "it begins", 150)
        check_equal(self.host.unit(self.unit)["ActiveState"], "active", f"{self.unit} has begun (journalctl -u {self.unit})")
        self.check_counts("fresh")
        return self

    def look(self, rounds=0):
        """Of each process: rounds, numbers that were wrong, calls that failed, PID, tracer; after so many more rounds."""
        return json.loads(self.host.run("python3", "-c", LOOK, f"{self.status}-{self.name}", str(rounds),
                                        *self.numbers, timeout=150).out)

    def check_counts(self, when, since=None):
        """All go on, their device memory is right, and no call has failed: so none is locked, frozen or held."""
        now = self.look(self.rounds)
        for one, was in zip(now, since or now):
            check_equal(one[1:3] + one[4:], [0, 0, "0"], f"{when}: wrong numbers, failed calls, tracer")
            check_equal(one[3], was[3], f"{when}: PID")
            check(one[0] >= was[0] + (self.rounds if since else 0), f"{when}: it counts on", (was, one))
        return now

    def device_files(self):
        return self.host.run("ls", MEMORY).out.split()

    def signal_masks(self):
        """Of all its threads, by TID."""
        pids = " ".join(str(process[3]) for process in self.look())
        return self.host.sh(f"for p in {pids}; do grep -H SigBlk /proc/$p/task/*/status; done").out.splitlines()

    def crctl(self, verb, *options, check=True):
        return self.host.run("crctl", verb, self.unit, *options, check=check, timeout=180)

    def refuse(self, verb, *options):
        outcome = self.crctl(verb, *options, check=False)
        check(outcome.code != 0, f"{verb} is refused", outcome)
        return outcome.err

    def check_down(self, when):
        state = self.host.unit(self.unit)
        check_equal((state["ActiveState"], state["Result"]), ("inactive", "success"), f"{when}: the unit")
        check_equal(self.device_files(), [], f"{when}: device memory that is held")
        check_equal(self.kept_files(), [], f"{when}: files for processes that have ended")

    def kept_files(self):
        return self.host.sh("find /var/lib/checkpointd -name '.gpu-memory-*'").out.splitlines()

    def check_no_trace(self, when):
        """Nothing of a job is left: no drop-in of it, no journal, no image that is not whole."""
        self.host.wait_undone(when)
        drop_ins = self.host.unit(self.unit, "DropInPaths")["DropInPaths"]
        check_equal((harness.without_gate(drop_ins), self.kept_files()), ([], []), f"{when}: drop-ins, files")

    def check_dead_workers(self, faults):
        """At each (step, action) a checkpoint ends, and nothing has happened to the program."""
        for step, action in faults:
            since = self.look()
            self.refuse("checkpoint", "--x-fault", f"step={step},action={action}")
            self.check_counts(f"{step} {action}", since)
            self.check_no_trace(f"{step} {action}")


def have_devices(host, *devices):
    host.sh(f"mountpoint -q {MEMORY} || {{ mkdir -p {MEMORY}; mount -t tmpfs -o mode=1777 tmpfs {MEMORY}; }}; for d in nvidiactl nvidia0; do test -e /dev/$d || mknod -m 666 /dev/$d c 1 11; done")
    if devices:
        host.write(f"{MEMORY}/.devices", "".join(f"{digits} 1024\n" for digits in devices))


def have_driver(host, version):
    """The next call finds another driver: programs that run do not notice."""
    host.write(f"{MEMORY}/.version", f"{version}\n")
    host.sh("systemctl stop checkpointd-cuda.service")


def have_faults(host, *lines):
    host.write(f"{MEMORY}/.faults", "".join(f"{line}\n" for line in lines))


def policy(host, timeouts="{}", **settings):
    text = ", ".join(f"{key.replace('_', '-')}: {value}" for key, value in settings.items())
    host.write("/etc/checkpointd/policy.yaml",
               f"version: 1\ndefaults: {{timeouts: {timeouts}, plugins: {{cuda: {{{text}}}}}}}\n")
    host.run("crctl", "policy", "reload")


_programs = {}


def program(t, name="a", libraries=HOME, mib=8):
    """`libraries`: the folder of the driver's; where it is not emulated its devices are there already."""
    host = t.host()
    if not _programs:
        environment = f"Environment=LD_LIBRARY_PATH={libraries}\n"
        host.write("/etc/systemd/system/gpu@.service",
                   f"[Service]\n{environment}ExecStart={HOME}/cuda-counter {STATUS}-%i 2 {mib}\n")
        if libraries == HOME:
            have_devices(host)
        host.drop_in("checkpointd-cuda.service", f"[Service]\n{environment}")
        host.sh("mkdir -p /run/checkpointd; touch /run/checkpointd/allow-faults")
    if name not in _programs:
        _programs[name] = Program(host, name)
    if host.unit(_programs[name].unit)["ActiveState"] != "active":
        _programs[name].start()
    return _programs[name]
