#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Units with WatchdogSec= stand still for longer than that, wherever a job holds them up, and systemd waits for them."""
import harness
from gpu_units import EMULATED, HOME, MEMORY, have_devices, have_faults, policy
from harness import case, check, check_equal, wait_for

PATIENCE = 8
BEAT = f"""import os, socket, subprocess, sys, time
peer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
if sys.argv[2:]: subprocess.Popen(sys.argv[2:])
peer.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
n, seen = 0, None
while True:
    now = open(sys.argv[3] + "-0", "rb").read(8) if sys.argv[2:] and os.path.exists(sys.argv[3] + "-0") else n
    if now != seen:
        n, seen = n + 1, now
        peer.sendto(b"WATCHDOG=1", os.environ["NOTIFY_SOCKET"])
        with open(sys.argv[1], "w") as file: file.write(str(n))
    time.sleep(0.1)
"""


class Watched:
    """It feeds its watchdog and counts. Where its child computes on a GPU, only if that has got on."""

    def __init__(self, host, name, *child):
        self.host, self.name, self.unit, self.file = host, name, f"watched-{name}.service", f"/var/tmp/watched-{name}"
        host.write("/opt/watched.py", BEAT)
        host.write(f"/etc/systemd/system/{self.unit}",
                   f"[Service]\nType=notify\nWatchdogSec={PATIENCE}\nRestart=always\n{EMULATED}"
                   f"ExecStart=/usr/bin/python3 /opt/watched.py {self.file} {' '.join(child)}\n")
        host.run("systemctl", "start", self.unit)
        self.main_pid = host.main_pid(self.unit)
        self.check_goes_on("started")

    def fed(self):
        return int(self.host.sh(f"systemctl show -P WatchdogTimestampMonotonic {self.unit}").out) / 1e6

    def count(self):
        text = self.host.read(self.file)
        return int(text) if text else 0

    def begin(self, *verb):
        self.host.run("systemd-run", "-q", "-u", f"job-{self.name}", "--", "crctl", verb[0], self.unit, *verb[1:])

    def has_ended(self):
        return self.host.unit(f"job-{self.name}.service")["ActiveState"] in ("inactive", "failed")

    def stands_still(self):
        return "tracing stop" in self.host.sh(f"cat /proc/{self.main_pid}/status || true").out

    def check_is_fed(self, since):
        """For longer than systemd would wait for it, while it cannot do so itself."""
        wait_for(lambda: self.fed() > since + PATIENCE + 1, f"{self.name}: its watchdog is fed", 60)
        check_equal(self.host.main_pid(self.unit), self.main_pid, f"{self.name}: its main process")

    def check_goes_on(self, when):
        before = self.count() if self.host.exists(self.file) else 0
        wait_for(lambda: self.host.exists(self.file) and self.count() > before + 5, f"{self.name}: it counts on, {when}", 60)
        shown = self.host.unit(self.unit)
        check_equal((shown["ActiveState"], shown["NRestarts"], shown["MainPID"]), ("active", "0", str(self.main_pid)),
                    f"{self.name}, {when}: state, restarts, main process")


@case
def nobody_is_killed_while_it_is_held(t):
    """By a step that writes the image, by one that brings the unit back, by the driver of a device, and by that while what a
    dead worker did is undone."""
    host = t.host()
    host.sh("mkdir -p /run/checkpointd; touch /run/checkpointd/allow-faults")
    have_devices(host)
    host.drop_in("checkpointd-cuda.service", f"[Service]\n{EMULATED}")
    policy(host, enabled="yes")
    down, up = Watched(host, "down"), Watched(host, "up")
    device = Watched(host, "device", f"{HOME}/cuda-counter", "/var/tmp/watched-gpu", "1", "1")
    wait_for(lambda: host.exists("/var/tmp/watched-gpu-0"), "it computes")
    host.run("crctl", "checkpoint", up.unit)

    down.begin("checkpoint", "--x-fault", "step=checkpoint.commit,action=hang")
    up.begin("restore", "--x-fault", "step=restore.mark-consumed,action=hang")
    have_faults(host, "checkpoint hang")
    device.begin("checkpoint", "--mode", "snapshot")
    wait_for(lambda: host.exists(f"{MEMORY}/.in-checkpoint"), "the driver is at work")
    wait_for(lambda: host.unit(up.unit)["ActiveState"] == "active", "the restored unit is up")
    wait_for(down.stands_still, "the other one stands")
    check(up.stands_still() and device.stands_still(), "all of them stand")
    since = max(unit.fed() for unit in (down, up, device))
    for unit in (down, up, device):
        unit.check_is_fed(since)
        check(unit.stands_still() and not unit.has_ended(), f"{unit.name}: it was held all the time")

    host.sh("systemctl kill -s KILL 'checkpointd-job-*'")
    wait_for(lambda: not device.stands_still(), "it waits for its child, and that for the driver", 30)
    device.check_is_fed(device.fed())
    have_faults(host)
    device.check_goes_on("after a slow driver and a dead worker")
    for unit in (down, up, device):
        wait_for(unit.has_ended, f"{unit.name}: the job has failed", 60)
    down.check_goes_on("after a checkpoint that hung")
    wait_for(lambda: host.unit(up.unit)["ActiveState"] == "inactive", "what was not restored is down", 60)
    host.run("crctl", "restore", up.unit)
    up.check_goes_on("restored")


if __name__ == "__main__":
    harness.main()
