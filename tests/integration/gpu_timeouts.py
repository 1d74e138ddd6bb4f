#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A hundred checkpoints of units on a GPU run out of time, at any moment of what the driver does, and leave a hundred
units running, unlocked, with their numbers right; half of them with a driver that copies device memory itself, half
with one that hands it to us. The driver is an emulation."""
import collections
import concurrent.futures
import random
import re

import harness
from gpu_units import have_driver, have_faults, policy, program
from harness import SOAK, case, check, check_equal

WANTED = 1000 if SOAK else 100
LEAST = 30 if SOAK else 3  # in each call
UNITS = "abcde"
# How long each call takes at most, in ms; of the way back, too, which has time enough.
DOWN = {13000: {"lock": 400, "checkpoint": 400}, 13040: {"lock": 400, "map": 80, "copy": 60, "complete": 200}}
BACK = {13000: {"restore": 400, "unlock": 400}, 13040: {"restore": 200, "unlock": 300}}
# What a checkpoint says that has run out of time, by the call in which it has.
TOLD = {"lock": r"did not lock it: CUDA_ERROR_TIMEOUT|did not lock it in time", "checkpoint": "did not checkpoint it in time",
        "map": "did not map the device memory of it in time|the driver is at work on another process",
        "copy": "its device memory is not copied in time|did not begin to copy the device memory of it in time",
        "complete": "did not complete the copy of it in time", "state": "did not tell the (state|device memory) of it in time"}


def snapshot(unit, when):
    """What it came to: done, the call in which it ran out of time, or other words."""
    since = unit.look()
    outcome = unit.crctl("checkpoint", "--mode", "snapshot", check=False)
    unit.check_counts(f"{when} {outcome.err}", since)
    if outcome.code == 0:
        return "done"
    return next((call for call, words in TOLD.items() if re.search(words, outcome.err)), outcome.err)


def draw(dice, version, seen):
    """Times that the policy allows, and faults. Every other round is for the call in which the fewest have run out of
    time: all others are quick, and what is not asked about it has all the time in the world."""
    most = DOWN[version]
    scarce = min(most, key=lambda call: seen[call]) if dice.random() < 0.5 else None
    delays = {call: dice.randint(0, longest if scarce in (None, call) else 5) for call, longest in most.items()}
    times = {"lock": dice.randint(10, 300) if scarce in (None, "lock") else 10000,
             "checkpoint": dice.randint(10, 300) if scarce != "lock" else 600000}
    kinds = {"lock": "busy"}  # work in flight, for which the driver waits
    faults = [f"{call} {kinds.get(call, 'delay')} {delay}" for call, delay in delays.items()]
    return times, faults + [f"{call} delay {dice.randint(0, longest)}" for call, longest in BACK[version].items()]


def time_out(units, dice, seed, version, wanted):
    """Until so many checkpoints have run out of time, and some in each call; answers what all came to."""
    host = units[0].host
    have_driver(host, version)
    seen, rounds = collections.Counter(), 0
    in_all = lambda: sum(seen[call] for call in TOLD)
    while in_all() < wanted or any(seen[call] < LEAST for call in DOWN[version]):
        rounds += 1
        check(rounds <= wanted * 2, f"seed {seed}: {version}: enough have run out of time in each call", seen)
        times, faults = draw(dice, version, seen)
        policy(host, **{f"{call}_timeout": f"{time}ms" for call, time in times.items()})
        have_faults(host, *faults)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            seen.update(pool.map(lambda unit: snapshot(unit, f"seed {seed}: {version} {times} {faults}"), units))
    have_faults(host)
    return seen


@case
def a_hundred_timeouts(t):
    units = [program(t, name) for name in UNITS]
    dice = random.Random()
    seed = dice.randrange(1 << 32)
    dice.seed(seed)
    for version in DOWN:
        seen = time_out(units, dice, seed, version, WANTED // len(DOWN))
        print(f"driver {version}: {', '.join(f'{count} {what}' for what, count in seen.most_common())}", flush=True)
        others = [what for what in seen.elements() if what != "done" and what not in TOLD]
        check(len(others) <= WANTED // 20, f"seed {seed}: hardly anything else is in the way of a checkpoint", others)
    policy(units[0].host, enabled="yes")
    for unit in units:
        check_equal(snapshot(unit, "with time enough"), "done", "with time enough")
    for unit in units:
        unit.check_no_trace("in the end")


harness.main()
