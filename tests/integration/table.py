#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Unit type x way down x way up, each on a real systemd; what is seen is the table of docs/units.md.

The page is compared with what was seen. CHECKPOINTD_TABLE=write in the environment writes it instead.
"""
import concurrent.futures
import dataclasses
import os
import re

import harness
from harness import TOP, Failed, Skip, case, check, check_equal, check_in, wait_for
from table_units import BUS_POLICY, CAN_BE_CARRIED, PROGRAMS, REFUSED

PAGE = TOP / "docs" / "units.md"
AT_ONCE = 4
WRITES = os.environ.get("CHECKPOINTD_TABLE") == "write"
LONG = harness.SOAK  # the short version leaves a column and most deaths out
CAME_BACK = "yes"


class Ways:
    """How units go down and come back. Names are the columns of the table, in the order in which they run."""

    columns = ["stop, restore", "snapshot, restore", "stop, reboot, restore"]

    def __init__(self, host, kinds):
        self.host = host
        self.kinds = kinds
        self.cells = {kind.row: {} for kind in kinds}

    def each(self, kinds, work):
        """Runs work(kind) for all, some at once; a failure is the kind's, and ends nothing else."""
        def guarded(kind):
            try:
                return kind, work(kind), None
            except Failed as failure:
                return kind, None, str(failure)
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(guarded, kinds))

    def take(self, column, down, between, up):
        """All down, `between`, all up; notes the cells. Returns the failures."""
        ran.add(column)
        failures = []
        alive = []
        for kind, saw, failure in self.each(self.kinds, down):
            if failure:
                failures.append(failure)
            else:
                alive.append((kind, saw))
        between()
        before = {kind.row: saw for kind, saw in alive}
        for kind, _, failure in self.each([kind for kind, _ in alive], lambda kind: up(kind, before[kind.row])):
            if failure:
                failures.append(failure)
            else:
                self.cells[kind.row][column] = CAME_BACK
        return failures


def version(host):
    return int(host.run("systemctl", "--version").out.split()[1])


def install(host, kind):
    if not kind.service:
        return
    restart = "Restart=on-failure\nRestartSec=0.1\n" if kind.restarts else ""
    host.write(f"/etc/systemd/system/{kind.unit}", f"[Service]\n{kind.service}{restart}")
    if kind.socket:
        host.write(f"/etc/systemd/system/{socket_of(kind)}", f"[Socket]\n{kind.socket}")


def socket_of(kind):
    return kind.unit.replace(".service", ".socket")


def start(host, kind):
    if kind.socket:
        host.run("systemctl", "start", socket_of(kind))
    if kind.start:
        host.sh(kind.start)
    else:
        host.run("systemctl", "start", kind.unit)


def install_all(host, kinds):
    for name, text in PROGRAMS.items():
        host.write(f"/opt/table/{name}.py", text)
    host.write("/etc/dbus-1/system.d/table.conf", BUS_POLICY)
    host.run("systemctl", "reload", "dbus.service")
    for kind in kinds:
        install(host, kind)
    host.run("systemctl", "daemon-reload")
    for kind in kinds:
        start(host, kind)


def count(host, kind):
    lines = host.sh(kind.count, check=False).out.split()
    return int(lines[-1]) if lines and lines[-1].isdigit() else 0


def wait_till_it_counts(host, kind, above, when):
    return wait_for(lambda: max(count(host, kind), above) if count(host, kind) > above else 0,
                    f"{kind.unit} {when}: counts on from {above}", 60)


def lead(host, kind):
    """Its main process; of a scope the first one. 0 for none."""
    if not kind.unit.endswith(".scope"):
        return host.main_pid(kind.unit)
    out = host.sh(f"cat /sys/fs/cgroup$(systemctl show -P ControlGroup {kind.unit})/cgroup.procs", check=False).out
    return min((int(pid) for pid in out.split()), default=0)


def definition(host, kind):
    """What a unit that is made on demand was made of."""
    return host.unit(kind.unit, "Transient", "Description", "Slice", "MemoryMax", "TimeoutStopUSec", "ExecStart",
                     "Restart", "RuntimeDirectory", "DropInPaths") if kind.made else {}


def without_pid(shown):
    return {name: re.sub(r"start_time=.*", "", value) for name, value in shown.items()}


def check_gone(host, kind, cgroup):
    check(not host.exists(f"/sys/fs/cgroup{cgroup}"), f"{kind.unit}: nothing of it is left")
    check(not kind.made or not host.exists(f"/run/systemd/transient/{kind.unit}"), f"{kind.unit}: nor its file")


@dataclasses.dataclass
class Before:
    """What a unit was when it went down."""
    pid: int
    reached: int
    cgroup: str
    definition: dict


def look(host, kind):
    reached = wait_till_it_counts(host, kind, 2, "started")
    return Before(lead(host, kind), reached, host.unit(kind.unit)["ControlGroup"],
                  without_pid(definition(host, kind)))


def stop(host, kind):
    before = look(host, kind)
    host.run("crctl", "checkpoint", kind.unit)
    shown = host.unit(kind.unit)
    check_equal((shown["ActiveState"], shown.get("Result", "success"), shown.get("NRestarts", "0")),
                ("inactive", "success", "0"), f"{kind.unit} after the checkpoint")
    check_gone(host, kind, before.cgroup)
    return before


def snapshot(host, kind):
    """It goes on, and is stopped later."""
    before = look(host, kind)
    host.run("crctl", "checkpoint", kind.unit, "--mode", "snapshot")
    check_equal(lead(host, kind), before.pid, f"{kind.unit} is the same after the snapshot")
    wait_till_it_counts(host, kind, before.reached, "went on")
    host.run("systemctl", "stop", kind.unit)
    return before


def restore(host, kind, before):
    if kind.socket:
        host.run("systemctl", "start", socket_of(kind))
    host.run("crctl", "restore", kind.unit)
    check_equal((host.unit(kind.unit)["ActiveState"], lead(host, kind)), (kind.state, before.pid),
                f"{kind.unit} restored")
    check_equal(without_pid(definition(host, kind)), before.definition, f"{kind.unit}: its definition")
    check(not host.exists(f"/run/systemd/system/{kind.unit}.d"), f"{kind.unit}: no drop-in is left")
    # One that had counted anew would be behind for a while, so a cold start is seen as such.
    after = count(host, kind)
    check(after >= before.reached, f"{kind.unit} restored: goes on from {before.reached}", after)
    wait_till_it_counts(host, kind, after, "restored")
    if "Type=notify-reload" in kind.service:  # PID 1 believes no answer that its clock dates before the question
        host.run("systemctl", "reload", kind.unit, timeout=60)
        check_equal(host.unit(kind.unit)["ActiveState"], kind.state, f"{kind.unit} reloaded")


def refusal(host, kind):
    """What crctl says, with the numbers that differ from run to run taken out."""
    unit = host.sh(f"systemctl list-units --plain --no-legend '{kind.unit}'").out.split()[0]
    pid = host.unit(unit, "MainPID").get("MainPID")
    wait_till_it_counts(host, kind, 2, "started")
    outcome = host.run("crctl", "checkpoint", unit, check=False)
    check(outcome.code != 0, f"{unit} is refused", outcome)
    check_equal(host.unit(unit, "MainPID").get("MainPID"), pid, f"{unit}: its main process")
    wait_till_it_counts(host, kind, count(host, kind) if kind.count != "echo 9" else 2, "refused")
    check(unit not in host.run("crctl", "list", "--json").out, f"{unit}: no image of it is left")
    check(not host.exists(f"/run/systemd/system/{unit}.d"), f"{unit}: no drop-in is left")
    return re.sub(r"[0-9]{2,}", "N", outcome.err.strip().removeprefix("crctl: ").replace(unit, kind.unit))


# --- the page ---

BEGIN = "<!-- systemd {}: made by tests/integration/table.py -->"
END = "<!-- end of systemd {} -->"


def section(number, columns, cells, refusals):
    lines = [BEGIN.format(number), f"## systemd {number}", "",
             f"| unit | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for row, ways in cells.items():
        lines.append(f"| {row} | {' | '.join(ways.get(column, 'fails') for column in columns)} |")
    lines += ["", "Refused, with the unit left as it was:", "", "| unit | what `crctl checkpoint` says |",
              "|---|---|"]
    for row, text in refusals.items():
        lines.append(f"| {row} | {text.replace('|', chr(92) + '|').replace(chr(10), '<br>')} |")
    return "\n".join(lines + [END.format(number)]) + "\n"


def take_over(cells, old, columns):
    """Cells of the ways that this run left out, from the page."""
    for line in old.splitlines():
        row, *values = [part.strip() for part in line.strip("|").split("|")]
        for column, value in zip(columns, values):
            if row in cells and column not in ran:
                cells[row][column] = value


def compare_page(number, ways, refusals):
    page = PAGE.read_text()
    begin, end = BEGIN.format(number), END.format(number) + "\n"
    there = begin in page
    old = page[page.index(begin):page.index(end) + len(end)] if there else ""
    take_over(ways.cells, old, ways.columns)
    text = section(number, ways.columns, ways.cells, refusals)
    if WRITES:
        PAGE.write_text(page.replace(old, text) if there else page.rstrip("\n") + "\n\n" + text)
        return
    if not there:
        raise Skip(f"{PAGE.name} has no section of systemd {number} yet; CHECKPOINTD_TABLE=write makes it")
    check_equal(text, old, f"the section of systemd {number} in {PAGE.name} (CHECKPOINTD_TABLE=write writes it)")


def kinds_of(host, kinds):
    return [kind for kind in kinds if version(host) >= kind.since]


table = {}  # what the cases leave for each other
ran = set()


@case
def units_that_can_be_carried(t):
    host = t.host()
    kinds = kinds_of(host, CAN_BE_CARRIED)
    install_all(host, kinds)
    ways = Ways(host, kinds)
    table["ways"] = ways
    failures = ways.take("stop, restore", lambda kind: stop(host, kind), lambda: None,
                         lambda kind, before: restore(host, kind, before))
    if LONG:
        failures += ways.take("snapshot, restore", lambda kind: snapshot(host, kind), lambda: None,
                              lambda kind, before: restore(host, kind, before))
    failures += ways.take("stop, reboot, restore", lambda kind: stop(host, kind), host.reboot,
                          lambda kind, before: restore(host, kind, before))
    check_equal(host.run("systemctl", "--failed", "--plain", "--no-legend").out, "", "failed units")
    check(not failures, f"{len(failures)} ways failed:\n  " + "\n  ".join(failures))


@case
def they_are_watched_as_before(t):
    """A crash is noticed and answered as the unit's Restart= says; a stop runs the program's own handler."""
    host = t.host()

    def crash(kind):
        pid = lead(host, kind)
        check(pid > 1, f"{kind.unit} runs", pid)
        shown = host.unit(kind.unit)
        check_equal(shown.get("NRestarts", "0"), "0", f"{kind.unit}: nothing restarted it, no watchdog")
        host.run("kill", "-SEGV", str(pid))
        if not kind.restarts:
            over = ("failed", "inactive") if kind.made else ("failed",)
            wait_for(lambda: host.unit(kind.unit)["ActiveState"] in over, f"{kind.unit} is seen to end")
            host.run("systemctl", "reset-failed", kind.unit, check=False)
        else:
            wait_for(lambda: host.unit(kind.unit)["NRestarts"] == "1" and lead(host, kind) not in (0, pid),
                     f"{kind.unit} is restarted by systemd", 30)
            wait_till_it_counts(host, kind, 0, "restarted")
            host.run("systemctl", "stop", kind.unit)
            check(host.unit(kind.unit)["ActiveState"] in ("inactive", "failed"), f"{kind.unit} stopped")
        check_gone(host, kind, shown["ControlGroup"])

    ways = table["ways"]
    failures = [failure for _, _, failure in ways.each(ways.kinds, crash) if failure]
    check(not failures, f"{len(failures)} failed:\n  " + "\n  ".join(failures))


# Where a worker dies, and what is there once the daemon has undone what it left.
DEATHS_DOWN = {"units.stop.stop-unit": True, "checkpoint.mark-ready": False}
DEATHS_UP = {"units.hand-over.dismiss-helper": False, "units.hand-over.remove-drop-in": True}
if LONG:
    DEATHS_DOWN = {"checkpoint.commit": True} | DEATHS_DOWN
    DEATHS_UP = {"units.stage.reload": False, "units.stage.start-unit": False, "restore.agent": False,
                 "restore.run": False} | DEATHS_UP


def check_deaths(host, kind, verb, deaths, revive):
    for step, lives in deaths.items():
        before = revive()
        outcome = host.run("crctl", verb, kind.unit, "--x-fault", f"step={step},action=kill", check=False)
        check(outcome.code != 0, f"{kind.unit}: the job dies at {step}", outcome)
        wait_for(lambda: not host.exists(f"/run/systemd/system/{kind.unit}.d"),
                 f"{kind.unit}, {step}: the drop-in goes", 30)
        wait_for(lambda: (lead(host, kind) == before.pid) == lives, f"{kind.unit}, {step}: lives {lives}", 30)
        if lives:
            wait_till_it_counts(host, kind, before.reached, f"after a death at {step}")
            check_equal(without_pid(definition(host, kind)), before.definition, f"{kind.unit}: its definition")
        else:
            wait_for(lambda: host.unit(kind.unit)["ActiveState"] == "inactive", f"{kind.unit}, {step}: inactive", 30)
            check_gone(host, kind, before.cgroup)


@case
def a_dead_worker_leaves_no_half_unit(t):
    """Units that exist only while they run are the easiest to lose."""
    host = t.host()
    host.sh("touch /run/checkpointd/allow-faults")

    def die(kind):
        start(host, kind)

        def up():
            if not lead(host, kind):
                host.run("crctl", "restore", kind.unit)
            return look(host, kind)

        def down():
            if not lead(host, kind):
                return last[0]
            last[0] = stop(host, kind)
            return last[0]

        last = [None]
        check_deaths(host, kind, "checkpoint", DEATHS_DOWN, up)
        up()
        check_deaths(host, kind, "restore", DEATHS_UP, down)
        host.run("systemctl", "stop", kind.unit)

    ways = table["ways"]
    made = [kind for kind in ways.kinds if kind.made]
    failures = [failure for _, _, failure in ways.each(made, die) if failure]
    check(not failures, "\n  ".join(failures))


@case
def units_that_cannot(t):
    host = t.host()
    install_all(host, REFUSED)
    ways = Ways(host, REFUSED)
    refused = ways.each(REFUSED, lambda kind: refusal(host, kind))
    table["refusals"] = {kind.row: text for kind, text, _ in refused}
    failures = [failure for _, _, failure in refused if failure]
    check(not failures, "\n  ".join(failures))


@case
def an_active_unit_is_not_restored_over(t):
    host = t.host()
    kind = table["ways"].kinds[0]
    start(host, kind)
    look(host, kind)
    image = host.run("crctl", "checkpoint", kind.unit, "--json").json()["Image"]
    start(host, kind)
    pid = host.main_pid(kind.unit)
    outcome = host.run("crctl", "restore", image, check=False)
    check(outcome.code != 0, "a running unit is in the way", outcome)
    check_equal(host.main_pid(kind.unit), pid, "the running one is untouched")


@case
def the_page_says_what_was_seen(t):
    host = t.host()
    compare_page(version(host), table["ways"], table["refusals"])


harness.main()
