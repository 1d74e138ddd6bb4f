#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The sample services by themselves, with nothing of checkpointd at work: what tests take for granted."""
import harness
from counter_watch import UNIT, CounterWatch
from harness import case, check, check_equal, wait_for


@case
def the_counter_counts(t):
    counter = CounterWatch(t.host())
    counter.start()
    counter.check_threads(counter.state(), "started")
    state = counter.state()
    counter.check_continues(state, "undisturbed")
    counter.check_deadline(state, "undisturbed")


@case
def a_wrong_counter_is_seen(t):
    """The checks are worth something: an interrupted call and a lost line do not pass."""
    host, counter = t.host(), CounterWatch(t.host())
    host.sh("sed -i 5d /var/log/counter/counter.log")
    try:
        counter.check_sound("with a line missing")
    except harness.Failed:
        pass
    else:
        raise harness.Failed("a missing line went unseen")
    state = dict(counter.state(), pid=1)
    try:
        counter.check_continues(state, "with another PID")
    except harness.Failed:
        pass
    else:
        raise harness.Failed("another process went unseen")


@case
def the_counter_says_goodbye(t):
    host = t.host()
    host.run("systemctl", "stop", UNIT)
    check_equal(host.unit(UNIT)["Result"], "success", "result of the stop")
    words = lambda: [entry["MESSAGE"] for entry in host.journal(UNIT)
                     if "bye at" in entry["MESSAGE"] or "consumer ends" in entry["MESSAGE"]]
    wait_for(lambda: len(words()) >= 2, "last words in the journal")
    check_equal(len(words()), 2, "both processes said their last words")


@case
def redis_runs_as_packaged(t):
    host = t.host()
    check_equal(host.unit("redis-server.service", "UnitFileState")["UnitFileState"], "disabled", "redis")
    host.run("systemctl", "start", "redis-server.service")
    check_equal(host.run("redis-cli", "ping").out, "PONG\n", "redis answers")
    pid = host.main_pid("redis-server.service")
    check(host.run("sh", "-c", f"grep ^Seccomp: /proc/{pid}/status").out.split()[1] == "2",
          "its sandbox is on")


harness.main()
