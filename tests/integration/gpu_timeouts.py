#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A hundred checkpoints of units on a GPU run out of time, at any moment of what the driver does, and leave a hundred
units running, unlocked, with their numbers right; half of them with a driver that copies device memory itself, half
with one that hands it to us. The driver is an emulation."""
import concurrent.futures
import random

import harness
from gpu_units import have_driver, have_faults, policy, program
from harness import SOAK, case, check_equal

WANTED = 1000 if SOAK else 100
UNITS = "abcde"
CALLS = {13000: {"lock": 400, "checkpoint": 400, "restore": 400, "unlock": 400},
         13040: {"lock": 400, "map": 80, "copy": 30, "complete": 80, "restore": 200, "unlock": 300}}


def snapshot(unit, when):
    since = unit.look()
    outcome = unit.crctl("checkpoint", "--mode", "snapshot", check=False)
    unit.check_counts(f"{when} {outcome.err}", since)
    return outcome.code


def time_out(units, dice, seed, version, wanted):
    """Until so many checkpoints have run out of time; answers how many did, and how many did not."""
    host = units[0].host
    have_driver(host, version)
    timeouts = others = 0
    while timeouts < wanted:
        times = {call: dice.randint(10, 300) for call in ("lock", "checkpoint")}
        delays = {call: dice.randint(0, most) for call, most in CALLS[version].items()}
        policy(host, **{f"{call}_timeout": f"{time}ms" for call, time in times.items()})
        have_faults(host, *(f"{call} delay {delay}" for call, delay in delays.items()))
        with concurrent.futures.ThreadPoolExecutor() as pool:
            codes = list(pool.map(lambda unit: snapshot(unit, f"seed {seed}: {version} {times} {delays}"), units))
        timeouts += sum(code != 0 for code in codes)
        others += codes.count(0)
    have_faults(host)
    return timeouts, others


@case
def a_hundred_timeouts(t):
    units = [program(t, name) for name in UNITS]
    dice = random.Random()
    seed = dice.randrange(1 << 32)
    dice.seed(seed)
    for version in CALLS:
        timeouts, others = time_out(units, dice, seed, version, WANTED // len(CALLS))
        print(f"driver {version}: {timeouts} ran out of time, {others} did not", flush=True)
    policy(units[0].host, enabled="yes")
    for unit in units:
        check_equal(snapshot(unit, "with time enough"), 0, "with time enough")
    for unit in units:
        unit.check_no_trace("in the end")


harness.main()
