#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Unit type x way down x way up, each on a real systemd; what is seen is the table of docs/units.md.

The page is compared with what was seen. CHECKPOINTD_TABLE=write in the environment writes it instead, and with
CHECKPOINTD_SOAK=1 all of its columns.
"""
import os
import re
import time

import harness
from harness import TOP, Skip, case, check, check_equal, wait_for
from table_units import CAN_BE_CARRIED, REFUSED, WIDTH
from ways import (arm, arm_for_shutdown, booted, check_gone, check_each, disarm, each, install_all, lead, look,
                  refusal, restore, resume, running, see, see_it_count, snapshot, start, started, stop, suspend, without_unit)

PAGE = TOP / "docs" / "units.md"
WRITES = os.environ.get("CHECKPOINTD_TABLE") == "write"
LONG = harness.SOAK  # the short version leaves columns and most deaths out
CAME_BACK = "yes"


class Ways:
    """How units go down and come back. Names are the columns of the table."""

    columns = ["stop, restore", "suspend, restore", "snapshot, restore", "stop, reboot, restore", "stop, start",
               "stop, boot", "shutdown, boot"]

    def __init__(self, host, kinds):
        self.host = host
        self.kinds = kinds
        self.cells = {kind.row: {} for kind in kinds}
        self.failures = []

    def note(self, column, done, cell):
        """The cells of those that went well; the others' failures. Returns what the former had to say."""
        for kind, said, failure in done:
            if failure:
                self.failures.append(f"{column}: {failure}")
            elif cell:
                self.cells[kind.row][column] = cell(kind, said)
        return {kind.row: said for kind, said, failure in done if not failure}

    def take(self, column, down, up, between=lambda: None, but=()):
        """All down, `between`, all up, without those that are named in `but`."""
        host, began = self.host, time.monotonic()
        kinds = [kind for kind in self.kinds if kind.name not in but]
        ran.update((kind.row, column) for kind in kinds)
        going = [kind for kind in kinds if column not in kind.refused]
        each(kinds, lambda kind: running(host, kind))
        self.note(column, each([kind for kind in kinds if column in kind.refused],
                                    lambda kind: refusal(host, kind, *kind.refused[column].split())),
                  lambda kind, text: f"no: {without_unit(kind, text)}")
        before = self.note(column, each(going, lambda kind: down(host, kind)), None)
        between()
        alive = [kind for kind in going if kind.row in before]
        self.note(column, each(alive, lambda kind: up(host, kind, before[kind.row])), lambda *_: CAME_BACK)
        print(f"        {column}: {time.monotonic() - began:.0f} s", flush=True)

    def check_all(self):
        check(not self.failures, f"{len(self.failures)} ways failed:\n  " + "\n  ".join(self.failures))


def version(host):
    return int(host.run("systemctl", "--version").out.split()[1])


# --- the page ---

BEGIN = "<!-- systemd {}: made by tests/integration/table.py -->"
END = "<!-- end of systemd {} -->"


def noted(cell, reasons):
    """A reason is told below the table, once."""
    answer, colon, reason = cell.partition(": ")
    if not colon:
        return cell
    if reason not in reasons:
        reasons.append(reason)
    return f"{answer} ({reasons.index(reason) + 1})"


def section(number, columns, cells, refusals):
    lines = [BEGIN.format(number), f"## systemd {number}", "",
             f"| unit | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    reasons = []
    for row, ways in cells.items():
        shown = [noted(ways.get(column, "fails"), reasons) for column in columns]
        lines.append(f"| {row} | {' | '.join(shown)} |")
    lines += ["", *(f"{note}. {reason}" for note, reason in enumerate(reasons, 1))]
    lines += ["", "Refused, with the unit left as it was:", "", "| unit | what `crctl checkpoint` says |",
              "|---|---|"]
    for row, text in refusals.items():
        lines.append(f"| {row} | {text.replace('|', chr(92) + '|').replace(chr(10), '<br>')} |")
    return "\n".join(lines + [END.format(number)]) + "\n"


def take_over(cells, old, columns):
    """Cells of the ways that this run left out, from the page."""
    reasons = dict(re.findall(r"^([0-9]+)\. (.*)$", old, re.MULTILINE))
    for line in old.splitlines():
        row, *values = [part.strip() for part in line.strip("|").split("|")]
        for column, value in zip(columns, values):
            if row in cells and (row, column) not in ran:
                cells[row][column] = re.sub(r" \(([0-9]+)\)$", lambda note: f": {reasons[note[1]]}", value)


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
    ways.take("stop, restore", stop, restore, but=() if LONG else WIDTH)
    ways.take("suspend, restore", suspend, resume)
    if LONG:
        ways.take("snapshot, restore", snapshot, restore)
        ways.take("stop, reboot, restore", stop, restore, host.reboot)
    arm(host, kinds)
    if LONG:
        ways.take("stop, start", stop, started)
    ways.take("stop, boot", stop, booted, host.reboot)
    if LONG:
        arm_for_shutdown(host)
        ways.take("shutdown, boot", look, booted, host.reboot)
    disarm(host)
    check_equal(host.run("systemctl", "--failed", "--plain", "--no-legend").out, "", "failed units")
    ways.check_all()


@case
def they_are_watched_as_before(t):
    """A crash is noticed and answered as the unit's Restart= says; a stop runs the program's own handler."""
    host, kinds = t.host(), table["ways"].kinds
    check_each(kinds, lambda kind: running(host, kind))

    def crash(kind):
        before = see(host, kind)
        check(before.lead > 1, f"{kind.unit} runs", before)
        check_equal(before.shown.get("NRestarts", "0"), "0", f"{kind.unit}: nothing restarted it, no watchdog")
        host.run("kill", "-SEGV", str(before.lead))
        if not kind.restarts:
            over = ("failed", "inactive") if kind.made else ("failed",)
            wait_for(lambda: see(host, kind).state in over, f"{kind.unit} is seen to end")
            host.run("systemctl", "reset-failed", kind.unit, check=False)
        else:
            def is_new():
                seen = see(host, kind)
                return seen.shown["NRestarts"] == "1" and seen.lead not in (0, before.lead)
            wait_for(is_new, f"{kind.unit} is restarted by systemd")
            see_it_count(host, kind, 0, "restarted")
            host.run("systemctl", "stop", kind.unit)
        check(check_gone(host, kind, before).state in ("inactive", "failed"), f"{kind.unit} stopped")

    check_each(kinds, crash)


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
        wait_for(lambda: not any(path.startswith("/run/systemd/system/") for path in see(host, kind).left) and
                 (lead(host, kind) == before.lead) == lives, f"{kind.unit}, {step}: no drop-in, lives {lives}")
        if lives:
            seen = see_it_count(host, kind, before.count, f"after a death at {step}")
            check_equal(seen.definition, before.definition, f"{kind.unit}: its definition")
        else:
            wait_for(lambda: see(host, kind).state == "inactive", f"{kind.unit}, {step}: inactive")
            check_gone(host, kind, before)


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

    check_each([kind for kind in table["ways"].kinds if kind.made], die)


@case
def units_that_cannot(t):
    host = t.host()
    install_all(host, REFUSED)
    refused = check_each(REFUSED, lambda kind: refusal(host, kind))
    table["refusals"] = {kind.row: refused[kind.name] for kind in REFUSED}


@case
def the_page_says_what_was_seen(t):
    host = t.host()
    compare_page(version(host), table["ways"], table["refusals"])


harness.main()
