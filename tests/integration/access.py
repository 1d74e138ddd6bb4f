#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may do what, decided by a real polkit; and what crctl shows on a terminal."""
import harness
from counter_watch import UNIT, CounterWatch
from harness import case, check, check_equal, check_in

DENIED = 5  # crctl(1)
OTHER = "counter@other.service"
RULE = """polkit.addRule(function(action, subject) {
    if (action.id == "org.checkpointd1.%s" && subject.user == "nobody" && %s)
        return polkit.Result.YES;
});
"""


def as_nobody(host, *command):
    return host.run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command, check=False)


def allow(host, action, condition="true"):
    host.write(f"/etc/polkit-1/rules.d/10-test-{action}.rules", RULE % (action, condition))
    host.run("systemctl", "try-restart", "polkit.service")


def check_denied(outcome, action, what):
    check_equal(outcome.code, DENIED, f"{what}: exit code ({outcome.err})")
    check_in(f"org.checkpointd1.{action}", outcome.err, f"{what}: names the action")
    check_in("polkit", outcome.err, f"{what}: names who decided")


@case
def a_user_may_look_at_the_list_only(t):
    host, counter = t.host(), CounterWatch(t.host())
    counter.start()
    check_equal(as_nobody(host, "crctl", "list").code, 0, "a user lists images")
    before = counter.state()
    check_denied(as_nobody(host, "crctl", "checkpoint", UNIT), "checkpoint", "a user's checkpoint")
    counter.check_continues(before, "after a checkpoint was denied")
    host.run("crctl", "checkpoint", UNIT)
    image = host.run("crctl", "--json", "list").json()[0]["Id"]
    for action, command in {"restore": ["restore", UNIT], "inspect": ["explain", image],
                            "manage-images": ["rm", image]}.items():
        check_denied(as_nobody(host, "crctl", *command), action, f"a user's {command[0]}")
    check_equal(host.unit(UNIT)["ActiveState"], "inactive", "the unit after a restore was denied")
    host.run("crctl", "restore", UNIT)
    counter.check_continues(before, "restored by root")


@case
def a_rule_opens_one_unit(t):
    """The unit's name reaches polkit, so that a rule may allow one and not the other."""
    host, counter = t.host(), CounterWatch(t.host())
    host.run("systemctl", "start", OTHER)
    for action in ("checkpoint", "restore"):
        allow(host, action, f'action.lookup("unit") == "{UNIT}"')
    before = counter.state()
    for verb in ("checkpoint", "restore"):
        done = as_nobody(host, "crctl", verb, UNIT)
        check_equal(done.code, 0, f"{verb} by the rule ({done.err})")
    counter.check_continues(before, "taken down and up by a user")
    check_denied(as_nobody(host, "crctl", "checkpoint", OTHER), "checkpoint", "another unit")
    check_equal(host.unit(OTHER)["ActiveState"], "active", "the other unit")
    host.run("systemctl", "stop", OTHER)


@case
def a_terminal_shows_progress(t):
    """script(1) gives crctl a terminal; without one there is no bar."""
    host = t.host()
    shown = host.run("script", "-qec", f"crctl checkpoint {UNIT}", "/dev/null").out
    check_in("%", shown, "a share of the work is shown")
    check_in("\x1b[K", shown, "on one line that is written again")
    done = host.run("crctl", "restore", UNIT)
    plain = done.out + done.err
    check("\x1b" not in plain and "%" not in plain, "no bar where there is no terminal", plain)


harness.main()
