# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the units of table_units.py go down and come back, and what is looked at on the way; for table.py and width.py."""
import concurrent.futures
import dataclasses
import re

from harness import Failed, check, check_equal, wait_for
from table_units import BUS_POLICY, PROGRAMS

AT_ONCE = 4
ARMED = "/etc/checkpointd/policy.d/table.yaml"


# ---- units and what they say of themselves

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
    host.write("/opt/table/look", LOOK)
    host.write("/etc/dbus-1/system.d/table.conf", BUS_POLICY)
    host.run("systemctl", "reload", "dbus.service")
    for kind in kinds:
        install(host, kind)
    host.run("systemctl", "daemon-reload")
    for kind in kinds:
        start(host, kind)


@dataclasses.dataclass
class Seen:
    """What there is to be seen of a unit."""
    shown: dict       # by systemctl
    lead: int         # its main process; of a scope the first one. 0 for none
    count: int        # what it says of itself, 0 for nothing
    left: list        # paths of its, of which some must go with it, others before
    comm: str         # name of its lead
    definition: dict  # what a unit that is made on demand was made of

    @property
    def state(self):
        return self.shown["ActiveState"]


SHOWN = ["ActiveState", "Result", "NRestarts", "MainPID", "ControlGroup", "InvocationID", "NFileDescriptorStore"]
DEFINITION = ["Transient", "Description", "Slice", "MemoryMax", "TimeoutStopUSec", "ExecStart", "Restart",
              "RuntimeDirectory", "DropInPaths"]
# All in one, because each command in a host costs as much as its work. It waits for a count above $ABOVE.
LOOK = """set -euo pipefail
unit=$1 group=$2 above=$3 ask=$4 names=$5
count() { (eval "$ask") 2>/dev/null | tail -n 1 || true; }
is_above() { [[ $1 =~ ^[0-9]+$ ]] && [ "$1" -gt "$above" ]; }
count=0
if [ -n "$above" ]; then
    end=$((SECONDS + 60))
    until count=$(count) && is_above "$count" || ((SECONDS > end)); do sleep 0.1; done
fi
shown=$(systemctl show "$unit" -p "$names")
lead=$(sed -n s/^MainPID=//p <<<"$shown")
[ -n "$group" ] || group=$(sed -n s/^ControlGroup=//p <<<"$shown")
[ -n "$lead" ] || lead=$(sort -n "/sys/fs/cgroup$group/cgroup.procs" 2>/dev/null | head -n 1 || true)
printf '%s\\n' "$shown" "Count=$count" "Lead=${lead:-0}" "Comm=$(cat /proc/${lead:-0}/comm 2>/dev/null || true)"
for path in "/run/systemd/system/$unit.d" "/run/systemd/transient/$unit" ${group:+"/sys/fs/cgroup$group"}; do
    [ ! -e "$path" ] || echo "Left=$path"
done
"""


def see(host, kind, above=None, group=""):
    """Waits until it counts on from `above`, unless that is None: then it is not asked. `group`: what its control
    group was, if it may have gone."""
    names = SHOWN + DEFINITION * kind.made
    out = host.run("bash", "/opt/table/look", kind.unit, group, "" if above is None else str(above), kind.count,
                   ",".join(names)).out
    lines = [line.split("=", 1) for line in out.splitlines()]
    shown = dict(lines)
    made = {name: re.sub(r"start_time=.*", "", shown.get(name, "")) for name in DEFINITION} if kind.made else {}
    number = int(shown["Count"]) if shown["Count"].isdigit() else 0
    return Seen(shown, int(shown["Lead"]), number, [value for name, value in lines if name == "Left"],
                shown["Comm"], made)


def see_it_count(host, kind, above, when):
    seen = see(host, kind, above)
    check(seen.count > above, f"{kind.unit} {when}: counts on from {above}", seen)
    return seen


def lead(host, kind):
    return see(host, kind).lead


def look(host, kind):
    """What it was before it goes down."""
    return see_it_count(host, kind, 2, "started")


def check_gone(host, kind, before):
    seen = see(host, kind, group=before.shown["ControlGroup"])
    check_equal(seen.left, [], f"{kind.unit}: what is left of it")
    return seen


# ---- ways down: each returns what the unit was before

def stop(host, kind):
    before = look(host, kind)
    host.run("crctl", "checkpoint", kind.unit)
    shown = check_gone(host, kind, before).shown
    check_equal((shown["ActiveState"], shown.get("Result", "success"), shown.get("NRestarts", "0")),
                ("inactive", "success", "0"), f"{kind.unit} after the checkpoint")
    return before


def suspend(host, kind):
    """It stays as it was for systemd, with a placeholder for its main process."""
    before = look(host, kind)
    host.run("crctl", "checkpoint", kind.unit, "--mode", "suspend")
    seen = see(host, kind)
    check_equal({name: seen.shown[name] for name in SHOWN if name != "MainPID"},
                {name: before.shown[name] for name in SHOWN if name != "MainPID"}, f"{kind.unit} suspended")
    check_equal(seen.comm, "suspended", f"{kind.unit}: its placeholder")
    check(seen.lead != before.lead, f"{kind.unit}: a process of its own", seen)
    return before


def snapshot(host, kind):
    """It goes on, and is stopped later."""
    before = look(host, kind)
    host.run("crctl", "checkpoint", kind.unit, "--mode", "snapshot")
    after = see_it_count(host, kind, before.count, "went on")
    check_equal(after.lead, before.lead, f"{kind.unit} is the same after the snapshot")
    host.run("systemctl", "stop", kind.unit)
    return before


# ---- ways up

def check_back(host, kind, before, when):
    """It is what it was, and runs. What happens in it from now on is told by itself."""
    seen = see(host, kind, 0)
    check_equal((seen.state, seen.lead), (kind.state, before.lead), f"{kind.unit} {when}")
    # One that had counted anew would be behind for a while, so a cold start is seen as such.
    check(seen.count >= before.count, f"{kind.unit} {when}: goes on from {before.count}", seen)
    check_equal(seen.definition, before.definition, f"{kind.unit} {when}: its definition")
    wait_for(lambda: not any(path.startswith("/run/systemd/system/") for path in see(host, kind).left),
             f"{kind.unit} {when}: no drop-in is left")
    see_it_count(host, kind, seen.count, when)
    if "Type=notify-reload" in kind.service:  # PID 1 believes no answer that its clock dates before the question
        host.run("systemctl", "reload", kind.unit)
        check_equal(see(host, kind).state, kind.state, f"{kind.unit} reloaded")


def restore(host, kind, before):
    if kind.socket:
        host.run("systemctl", "start", socket_of(kind))
    host.run("crctl", "restore", kind.unit)
    check_back(host, kind, before, "restored")


def resume(host, kind, before):
    host.run("crctl", "restore", kind.unit)
    check_back(host, kind, before, "resumed")
    check_equal(see(host, kind).shown, before.shown | {"Count": "0"}, f"{kind.unit} resumed: what systemd says of it")


def started_by_itself(host, kind, before):
    """Whatever starts it has it back: a boot, a start job, the first client of its socket."""
    def is_back():
        seen = see(host, kind, 0 if kind.socket else None)
        return (seen.state, seen.lead) == (kind.state, before.lead)
    wait_for(is_back, f"{kind.unit} is {kind.state} as PID {before.lead} again", 60)
    check_back(host, kind, before, "started")


def started(host, kind, before):
    if kind.socket:
        host.run("systemctl", "start", socket_of(kind))
    elif kind.start:
        host.sh(kind.start)
    else:
        host.run("systemctl", "start", kind.unit)
    started_by_itself(host, kind, before)


def booted(host, kind, before):
    """A oneshot that ends never would hold up the boot; it is started when the boot is over."""
    if kind.state == "activating":
        return started(host, kind, before)
    return started_by_itself(host, kind, before)


def arm(host, kinds):
    """From now on they start at each boot, and any start of one that has an image is a restore."""
    wanted = [socket_of(kind) if kind.socket else kind.unit for kind in kinds
              if not kind.made and kind.state != "activating"]
    host.write("/etc/systemd/system/table-boot.target",
               f"[Unit]\nDefaultDependencies=no\nWants={' '.join(wanted)}\n[Install]\nWantedBy=multi-user.target\n")
    names = ", ".join(f"{kind.unit}: {{restore-at-boot: yes}}" for kind in kinds if not kind.made)
    host.write(ARMED, f"units: {{{names}}}\n")
    host.sh("systemctl daemon-reload; systemctl enable table-boot.target 2>&1; crctl policy reload")


def arm_for_shutdown(host):
    """They go to disk by themselves when the system goes down."""
    host.write(ARMED, host.read(ARMED).replace("restore-at-boot: yes", "restore-at-boot: yes, checkpoint-at-shutdown: yes"))
    host.run("crctl", "policy", "reload")
    wait_for(lambda: host.unit("checkpointd-shutdown.service", "ActiveState")["ActiveState"] == "active",
             "the unit that is stopped first")


def disarm(host):
    host.sh(f"rm {ARMED}; systemctl disable table-boot.target 2>&1; crctl policy reload")


# ---- no way

def refusal(host, kind, *command):
    """What crctl says, with the numbers that differ from run to run taken out. The unit goes on as if nothing had been."""
    unit = host.sh(f"systemctl list-units --plain --no-legend '{kind.unit}'").out.split()[0]
    one = dataclasses.replace(kind, unit=unit)
    before, images = see_it_count(host, one, 2, "started"), images_of(host, unit)
    outcome = host.run("crctl", *(command or ["checkpoint"]), unit, check=False)
    check(outcome.code != 0, f"{unit} is refused", outcome)
    after = see_it_count(host, one, before.count if kind.count != "echo 9" else 2, "refused")
    check_equal((after.lead, after.left), (before.lead, before.left), f"{unit}: its main process, and what is there of it")
    check_equal(images_of(host, unit), images, f"{unit}: its images")
    return re.sub(r"[0-9]{2,}", "N", outcome.err.strip().removeprefix("crctl: ").replace(unit, kind.unit))


def images_of(host, unit):
    return [image["Id"] for image in host.run("crctl", "--json", "list", unit).json()]


def without_unit(kind, text):
    """The reasons alone, out of what crctl says."""
    lines = text.splitlines()
    return "; ".join(line.strip().removeprefix(f"{kind.unit}: ") for line in lines[1:] or lines)


def running(host, kind):
    """Starts it, unless it runs."""
    if not lead(host, kind):
        start(host, kind)


def each(kinds, work):
    """Runs work(kind) for all, some at once; a failure is the kind's, and ends nothing else. Returns of each
    (kind, what work returned, what went wrong)."""
    def run(kind):
        try:
            return kind, work(kind), None
        except Failed as failure:
            return kind, None, str(failure)
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(run, kinds))


def check_each(kinds, work):
    """The same where all must go well. Returns what work returned, by the kinds' names."""
    done = each(kinds, work)
    failures = [failure for _, _, failure in done if failure]
    check(not failures, f"{len(failures)} failed:\n  " + "\n  ".join(failures))
    return {kind.name: said for kind, said, _ in done}
