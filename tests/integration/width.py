#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Services of many kinds go to disk and come back, through a reboot and again. All kinds and ways: table.py."""
import harness
from harness import case, check, check_equal, check_in
from table_units import CAN_BE_CARRIED, WIDTH
from ways import check_each, images_of, install_all, look, restore, see, start, stop

KINDS = [kind for kind in CAN_BE_CARRIED if kind.name in WIDTH]


@case
def every_kind_comes_back_after_a_reboot(t):
    host = t.host()
    install_all(host, KINDS)
    before = check_each(KINDS, lambda kind: stop(host, kind))
    host.reboot()
    check_each(KINDS, lambda kind: restore(host, kind, before[kind.name]))
    check_equal(host.run("systemctl", "--failed", "--plain", "--no-legend").out, "", "failed units")


@case
def what_was_restored_can_go_to_disk_again(t):
    """The second image of a process is made of what the first restore rebuilt."""
    host = t.host()
    check_each(KINDS if harness.SOAK else [KINDS[0], KINDS[-1]],
               lambda kind: restore(host, kind, stop(host, kind)))


@case
def an_active_unit_is_not_restored_over(t):
    host, kind = t.host(), KINDS[-1]
    look(host, kind)
    host.run("crctl", "checkpoint", kind.unit)
    start(host, kind)
    before = look(host, kind)
    outcome = host.run("crctl", "restore", images_of(host, kind.unit)[0], check=False)
    check(outcome.code != 0, "a running unit is in the way", outcome)
    check_in("is active", outcome.err, "what it says")
    check_equal(see(host, kind).lead, before.lead, "the running one is untouched")


@case
def what_is_frozen_is_refused_at_once(t):
    """By systemctl freeze, past which systemd 256 and newer let no job, and by a cgroup above the unit's."""
    host, unit, flag = t.host(), "width-frozen.service", "/sys/fs/cgroup/width.slice/cgroup.freeze"
    host.write(f"/etc/systemd/system/{unit}", "[Service]\nExecStart=/bin/sleep infinity\nSlice=width.slice\n")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", unit)
    pid = host.main_pid(unit)
    for freeze, thaw in ((f"systemctl freeze {unit}", f"systemctl thaw {unit}"),
                         ("systemctl freeze width.slice", "systemctl thaw width.slice"),
                         (f"echo 1 >{flag}", f"echo 0 >{flag}")):
        host.sh(freeze)
        outcome = host.run("crctl", "checkpoint", unit, check=False)
        host.sh(thaw)
        check_equal(outcome.code, 4, f"after {freeze}: {outcome.err}")
        check_in("is frozen", outcome.err, f"after {freeze}: what is said")
        check_in("thaw", outcome.err, f"after {freeze}: the remedy")
        check_equal(host.unit(unit, "ActiveState", "MainPID"), {"ActiveState": "active", "MainPID": str(pid)},
                    f"the unit after {freeze}")
    host.run("crctl", "checkpoint", unit)
    host.run("systemctl", "freeze", "width.slice")
    outcome = host.run("crctl", "restore", unit, check=False)
    host.run("systemctl", "thaw", "width.slice")
    check_equal(outcome.code, 4, f"restore into a frozen slice: {outcome.err}")
    check_in("its slice width.slice is frozen", outcome.err, "restore into a frozen slice")
    check_equal(host.unit(unit)["ActiveState"], "inactive", "the unit whose restore was refused")
    host.run("crctl", "restore", unit)
    check_equal(host.main_pid(unit), pid, "restored when it was thawed")
    host.run("systemctl", "stop", unit)


harness.main()
