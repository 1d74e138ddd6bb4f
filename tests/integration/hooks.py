#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The units that take other units to disk: checkpoint@.service, restore@.service, checkpoint@.timer."""
from counter_watch import UNIT, CounterWatch
import harness
from harness import case, check, check_equal, check_in, wait_for

ESCAPED = "counter@with-dash.service"


def images(host, unit):
    return [image for image in host.run("crctl", "--json", "list", unit).json() if image["Unit"] == unit]


@case
def a_snapshot_by_hook(t):
    host, counter = t.host(), CounterWatch(t.host())
    counter.start()
    before = counter.state()
    host.run("systemctl", "start", "checkpoint@counter.service")
    counter.check_continues(before, "after a snapshot")
    check_equal([image["State"] for image in images(host, UNIT)], ["ready"], "images")


@case
def down_and_up_by_hook(t):
    """The mode is changed as an author of units would; the name with its suffix is understood as well."""
    host, counter = t.host(), CounterWatch(t.host())
    host.write("/etc/systemd/system/checkpoint@.service.d/mode.conf",
               "[Service]\nEnvironment=CHECKPOINTD_MODE=stop\n")
    host.run("systemctl", "daemon-reload")
    before = counter.state()
    host.run("systemctl", "start", f"checkpoint@{UNIT}.service")
    check_equal(host.unit(UNIT)["ActiveState"], "inactive", "the unit")
    host.run("systemctl", "start", "restore@counter.service")
    counter.check_continues(before, "down and up")


@case
def an_escaped_name(t):
    host = t.host()
    host.run("systemctl", "start", ESCAPED)
    hook = host.run("systemd-escape", "--template=checkpoint@.service", ESCAPED).out.strip()
    check_in("\\x2d", hook, "the name is escaped")
    host.run("systemctl", "start", hook)
    check_equal(host.unit(ESCAPED)["ActiveState"], "inactive", "the unit")
    host.run("systemctl", "start", f"restore@{ESCAPED}.service")
    check_equal(host.unit(ESCAPED)["ActiveState"], "active", "the unit")
    host.run("systemctl", "stop", ESCAPED)


@case
def a_failure_is_told(t):
    host = t.host()
    failed = host.run("systemctl", "start", "checkpoint@no-such.service", check=False)
    check(failed.code != 0, "the hook fails", failed)
    check_in("no such unit", host.run("journalctl", "-u", "checkpoint@no-such.service").out, "its journal")


@case
def snapshots_by_timer(t):
    """Many snapshots, of which the policy keeps two."""
    host, counter = t.host(), CounterWatch(t.host())
    host.write("/etc/systemd/system/checkpoint@.service.d/mode.conf", "")
    host.write("/etc/checkpointd/policy.yaml", "version: 1\ndefaults: {keep: 2}\n")
    host.write("/etc/systemd/system/checkpoint@.timer.d/often.conf",
               "[Timer]\nOnActiveSec=\nOnActiveSec=1s\nOnUnitActiveSec=1s\n"
               "RandomizedDelaySec=0\nAccuracySec=1ms\n")
    host.run("systemctl", "daemon-reload")
    host.run("crctl", "policy", "reload")
    before = counter.state()
    host.run("systemctl", "start", "checkpoint@counter.timer")
    seen = set()

    def four_were_taken():
        seen.update(image["Id"] for image in images(host, UNIT))
        return len(seen) >= 4

    wait_for(four_were_taken, "four snapshots", 120, 0.2)
    host.run("systemctl", "stop", "checkpoint@counter.timer")
    wait_for(lambda: host.unit("checkpoint@counter.service")["ActiveState"] == "inactive", "the last one")
    check_equal(len(images(host, UNIT)), 2, "images that stayed")
    counter.check_continues(before, "after many snapshots")


harness.main()
