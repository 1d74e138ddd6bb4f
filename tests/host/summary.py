#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Adds up meson's test logs of one run. Usage: summary.py FOLDER (of N.json, and `broken`).

Counts test cases where a program reports its own (GoogleTest, tests/integration/harness.py), programs
otherwise. Last line: `N passed, N failed, N skipped`. Exit status 1 unless something passed and nothing
failed.
"""
import json
import pathlib
import re
import sys

GTEST = {"passed": r"^\[  PASSED  \] (\d+) tests?\.$",
         "failed": r"^\[  FAILED  \] (\d+) tests?, listed below:$",
         "skipped": r"^\[  SKIPPED \] (\d+) tests?, listed below:$"}
HARNESS = {kind: rf"(\d+) {kind}" for kind in GTEST}
BAD = {"FAIL", "TIMEOUT", "ERROR", "INTERRUPT", "UNEXPECTEDPASS"}


def counts_of(entry):
    text = entry.get("stdout", "")
    counts = {kind: sum(map(int, re.findall(p, text, re.M))) for kind, p in GTEST.items()}
    last = re.findall(r"^\d+ passed, \d+ failed, \d+ skipped$", text, re.M)
    if last:
        counts = {kind: int(re.search(p, last[-1])[1]) for kind, p in HARNESS.items()}
    if entry["result"] in BAD and not counts["failed"]:
        counts["failed"] = 1
    if entry["result"] == "SKIP" and not any(counts.values()):
        counts["skipped"] = 1
    if not any(counts.values()):
        counts["passed"] = 1
    return counts


def main():
    folder = pathlib.Path(sys.argv[1])
    total = dict.fromkeys(GTEST, 0)
    names = {"failed": [], "skipped": []}
    for log in sorted(folder.glob("*.json")):
        for line in log.read_text().splitlines():
            entry = json.loads(line)
            counts = counts_of(entry)
            for kind, number in counts.items():
                total[kind] += number
                if number and kind in names:
                    names[kind].append(f"{entry['name']} ({entry['result']})")
    broken = folder / "broken"
    if broken.exists():
        names["failed"] += broken.read_text().splitlines()
        total["failed"] += len(broken.read_text().splitlines())
    for kind, which in names.items():
        for name in which:
            print(f"{kind}: {name}")
    print("{passed} passed, {failed} failed, {skipped} skipped".format(**total))
    return 1 if total["failed"] or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
