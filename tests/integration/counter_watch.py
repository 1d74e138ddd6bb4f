# SPDX-License-Identifier: LGPL-2.1-or-later
"""Looks at counter.service from inside: what its own state files and its log say."""
import json

from harness import check, check_equal, wait_for

UNIT = "counter.service"


class CounterWatch:
    """The counter on a host. `state` is what the main process says, `consumer` its other process."""

    def __init__(self, host):
        self.host = host

    def start(self):
        self.host.run("systemctl", "start", UNIT)
        wait_for(lambda: self.host.exists("/var/lib/counter/consumer.json"), "the counter reports")
        self.check_alive("freshly started")

    def state(self):
        return json.loads(self.host.read("/var/lib/counter/state.json"))

    def consumer(self):
        return json.loads(self.host.read("/var/lib/counter/consumer.json"))

    def log(self):
        return [int(line) for line in self.host.read("/var/log/counter/counter.log").splitlines()]

    def check_alive(self, when):
        """Every thread of it makes progress, nothing was lost, nobody was interrupted visibly."""
        before, items = self.state(), self.consumer()["received"]
        moving = ("updates", "count", "expirations", "sent", "timer_signals")
        wait_for(lambda: all(self.state()[key] > before[key] for key in moving),
                 f"{when}: every one of {moving} moves")
        wait_for(lambda: self.consumer()["received"] > items, f"{when}: items come through the pipe")
        self.check_sound(when)

    def check_sound(self, when):
        state, consumer = self.state(), self.consumer()
        check(state["memory_intact"], f"{when}: the memory is what it was", state)
        check_equal((consumer["lost"], consumer["repeated"]), (0, 0), f"{when}: items lost, repeated")
        check_equal(state["count"] <= state["expirations"], True, f"{when}: no tick without the timer")
        # Calls that restart by themselves (signal(7)) must not end with EINTR because of us.
        check_equal((state["eintr"]["read"], state["eintr"]["deadline"]), (0, 0),
                    f"{when}: EINTR in read, clock_nanosleep")
        log = self.log()
        check_equal(log, list(range(1, len(log) + 1)), f"{when}: numbers in the log file")

    def check_threads(self, state, when):
        """The threads that `state` names are those of the kernel."""
        tids = sorted(map(int, self.host.run("ls", f"/proc/{state['pid']}/task").out.split()))
        check_equal(tids, sorted(state["threads"].values()), f"{when}: threads of the main process")

    def check_continues(self, before, when):
        """The same process goes on from `before`, a state taken just before it was stopped."""
        wait_for(lambda: self.state()["updates"] > before["updates"], f"{when}: it reports again")
        now = self.state()
        for key in ("pid", "consumer", "threads"):
            check_equal(now[key], before[key], f"{when}: {key}")
        # Ten a second by its own clock, which stood still with it.
        most = before["count"] + (now["monotonic_ns"] - before["monotonic_ns"]) / 1e8 + 3
        check(before["count"] <= now["count"] <= most,
              f"{when}: the counter goes on from {before['count']}, at most to {most:.0f}", now["count"])
        self.check_threads(now, when)
        self.check_alive(when)

    def check_deadline(self, before, when, tolerance=0.5):
        """The thread that slept towards a deadline when `before` was taken wakes at it. A machine that makes another of
        its threads wait may make this one wait as long."""
        left = (before["next_deadline_ns"] - before["monotonic_ns"]) / 1e9
        wait_for(lambda: self.state()["wakes"] > before["wakes"], f"{when}: the sleeper wakes",
                 max(left, 0) + 60)
        now = self.state()
        if now["wakes"] == before["wakes"] + 1:
            check_equal(now["last_deadline_ns"], before["next_deadline_ns"], f"{when}: the deadline")
        check(now["worst_lateness_ns"] < tolerance * 1e9 + now["largest_gap_ns"], f"{when}: it woke in time", now)
        return now["last_lateness_ns"] / 1e6
