#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A hundred checkpoints of units on a GPU run out of time, at any moment of what the driver does, and leave a hundred
units running, unlocked, with their numbers right. The driver is an emulation."""
import concurrent.futures
import random

import harness
from gpu_units import have_faults, policy, program
from harness import SOAK, case, check

WANTED = 1000 if SOAK else 100
UNITS = "abcde"
CALLS = ("lock", "checkpoint", "restore", "unlock")


def snapshot(unit, when):
    since = unit.look()
    outcome = unit.crctl("checkpoint", "--mode", "snapshot", check=False)
    unit.check_counts(f"{when} {outcome.err}", since)
    return outcome.code


@case
def a_hundred_timeouts(t):
    units = [program(t, name) for name in UNITS]
    host = units[0].host
    dice = random.Random()
    seed = dice.randrange(1 << 32)
    dice.seed(seed)
    timeouts = others = 0
    while timeouts < WANTED:
        times = {call: dice.randint(10, 250) for call in ("lock", "checkpoint")}
        delays = {call: dice.randint(0, 400) for call in CALLS}
        policy(host, **{f"{call}_timeout": f"{time}ms" for call, time in times.items()})
        have_faults(host, *(f"{call} delay {delay}" for call, delay in delays.items()))
        with concurrent.futures.ThreadPoolExecutor() as pool:
            codes = list(pool.map(lambda unit: snapshot(unit, f"seed {seed}: {times} {delays}"), units))
        timeouts += sum(code != 0 for code in codes)
        others += codes.count(0)
    have_faults(host)
    print(f"{timeouts} ran out of time, {others} did not", flush=True)
    check(others > 0, "some came to their end in time")
    for unit in units:
        unit.check_no_trace("in the end")
    policy(host, enabled="yes")


harness.main()
