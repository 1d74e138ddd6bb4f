#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""./dev demo: two running services go to disk, through a reboot, and come back as they were."""
import re
import signal
import sys
import time

from counter_watch import CounterWatch
from harness import Failed, Host, Skip, check, check_equal, check_in, wait_for

REDIS, COUNTER, DEPENDENT = "redis-server.service", "counter.service", "counter-user.service"
KEYS = 10000
CLOCKS = "import time; print(time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME))"


class Demo:
    def __init__(self, host):
        self.host = host
        self.began = time.monotonic()
        self.counter = CounterWatch(host)
        self.before = {}   # unit -> what it was before the checkpoint
        self.figures = {}  # unit -> numbers for the table

    def say(self, text):
        print(f"[{time.monotonic() - self.began:6.2f} s] {text}", flush=True)

    def redis(self, *command):
        return self.host.run("redis-cli", "-e", *command).out.strip()

    def redis_info(self, field):
        return re.search(rf"^{field}:(\S+)", self.redis("info", "server"), re.M)[1]

    # ---- 1. two services

    def start_services(self):
        self.host.run("systemctl", "start", REDIS)
        self.redis("config", "set", "save", "")
        self.redis("config", "set", "appendonly", "no")
        self.redis("eval", f"for i = 1, {KEYS} do redis.call('set', 'key:' .. i, 'value ' .. i) end", "0")
        self.redis("rpush", "list", "one", "two", "three")
        self.redis("set", "fading", "x", "ex", "3600")
        self.before[REDIS] = {"pid": self.host.main_pid(REDIS), "run_id": self.redis_info("run_id")}
        self.say(f"{REDIS} runs, PID {self.before[REDIS]['pid']}, {self.redis('dbsize')} keys, "
                 f"run_id {self.before[REDIS]['run_id'][:12]}…, saving is off")
        self.counter.start()
        self.host.run("systemctl", "start", DEPENDENT)
        self.before[COUNTER] = {"pid": self.host.main_pid(COUNTER)}
        self.before[DEPENDENT] = {"pid": self.host.main_pid(DEPENDENT)}
        state = self.counter.state()
        self.counter.check_threads(state, "started")
        self.say(f"{COUNTER} runs, PID {state['pid']}, {len(state['threads'])} threads, a second process "
                 f"{state['consumer']} at a pipe; it counts: {state['count']}")

    # ---- 2. to disk

    def checkpoint(self, unit):
        outcome = self.host.run("crctl", "checkpoint", unit, "--json")
        figures = outcome.json()
        self.figures[unit] = {"frozen": figures["FrozenUsec"] / 1000, "total": figures["TotalUsec"] / 1000,
                              "mib": figures["Bytes"] / (1 << 20), "image": figures["Image"]}
        self.say("crctl checkpoint {}: frozen {frozen:.1f} ms, total {total:.1f} ms, image {mib:.1f} MiB"
                 .format(unit, **self.figures[unit]))
        self.check_inactive(unit)

    def check_inactive(self, unit):
        shown = self.host.unit(unit)
        seen = {key: shown[key] for key in ("ActiveState", "SubState", "Result", "MainPID", "NRestarts")}
        check_equal(seen, {"ActiveState": "inactive", "SubState": "dead", "Result": "success",
                           "MainPID": "0", "NRestarts": "0"}, f"{unit} after the checkpoint")
        # Its number is that of a dead process, which keeps it from others.
        command = self.host.sh(f"cat /proc/{self.before[unit]['pid']}/cmdline 2>/dev/null || true").out
        check_equal(command, "", f"{unit}: its process is gone")
        check(not self.host.exists(f"/sys/fs/cgroup/system.slice/{unit}"), f"{unit}: its cgroup is gone")

    def checkpoint_all(self):
        self.checkpoint(REDIS)
        self.checkpoint(COUNTER)
        self.before[COUNTER]["state"] = self.counter.state()
        time.sleep(1.5)  # Restart=always would have started a cold copy by now
        for unit in (REDIS, COUNTER):
            self.check_inactive(unit)
        check_equal(self.host.main_pid(DEPENDENT), self.before[DEPENDENT]["pid"], f"{DEPENDENT}, its PID")
        check_equal(self.host.run("systemctl", "--failed", "--plain", "--no-legend").out, "", "failed units")
        check(not self.host.exists("/var/lib/redis/dump.rdb"), "redis saved nothing by itself")
        listed = self.host.run("crctl", "list", "--json").out
        for unit in (REDIS, COUNTER):
            check_in(self.figures[unit]["image"], listed, f"crctl list names the image of {unit}")
        self.say(f"both are inactive, not failed, no cold copy; {DEPENDENT}, which requires the counter, "
                 "is untouched")

    # ---- 3. through a reboot

    def reboot(self):
        boot_id = self.host.read("/proc/sys/kernel/random/boot_id")
        clock = self.host.run("python3", "-c", CLOCKS).out.split()
        began = time.monotonic()
        self.host.reboot()
        new_clock = self.host.run("python3", "-c", CLOCKS).out.split()
        took = time.monotonic() - began
        check(self.host.read("/proc/sys/kernel/random/boot_id") != boot_id, "the boot id differs")
        for old, new in zip(clock, new_clock):
            check(float(new) < float(old) + took - 1, "the clocks start anew", (clock, new_clock, took))
        for unit in (REDIS, COUNTER):
            check_equal(self.host.unit(unit)["ActiveState"], "inactive", f"{unit} after the reboot")
        self.say(f"rebooted: new boot id, CLOCK_MONOTONIC {float(clock[0]):.1f} s -> "
                 f"{float(new_clock[0]):.1f} s; neither service started")

    # ---- 4. back again

    def restore(self, unit):
        outcome = self.host.run("crctl", "restore", unit, "--json")
        total = outcome.json()["TotalUsec"] / 1000
        self.figures[unit]["restore"] = total
        shown = self.host.unit(unit)
        check_equal((shown["ActiveState"], shown["SubState"], int(shown["MainPID"])),
                    ("active", "running", self.before[unit]["pid"]), f"{unit} after the restore")
        check_equal(shown["NeedDaemonReload"], "no", f"{unit}: no drop-in of ours waits")
        self.say(f"crctl restore {unit}: total {total:.1f} ms, active (running), "
                 f"main PID {shown['MainPID']} as before")

    def check_redis(self):
        check_equal(self.redis_info("run_id"), self.before[REDIS]["run_id"], "run_id of redis")
        check_equal(int(self.redis("dbsize")), KEYS + 2, "number of keys")
        script = f"for i = 1, {KEYS} do if redis.call('get', 'key:' .. i) ~= 'value ' .. i then return i end " \
                 "end return 'all'"
        check_equal(self.redis("eval", script, "0"), "all", "values of the keys")
        check_equal(self.redis("lrange", "list", "0", "-1").split(), ["one", "two", "three"], "a list")
        check(3000 < int(self.redis("ttl", "fading")) <= 3600, "a key that fades", self.redis("ttl", "fading"))
        check_equal(self.redis("incr", "new"), "1", "redis takes new keys")
        self.say("redis has its keys and its run_id, and takes new ones")

    def check_counter(self):
        state = self.before[COUNTER]["state"]
        self.counter.check_continues(state, "restored")
        self.say(f"the counter went on from {state['count']}: now {self.counter.state()['count']}; no item "
                 "lost in the pipe, no gap in the log file, threads and memory as before")
        since = len(self.journal_lines())
        wait_for(lambda: len(self.journal_lines()) > since, "new lines in the journal under the unit")
        self.say(f"journal: {self.journal_lines()[-1]!r} under {COUNTER}")
        late = self.counter.check_deadline(state, "restored")
        self.say(f"the thread that slept towards an absolute deadline woke {late:.2f} ms after it")

    def journal_lines(self):
        return [entry["MESSAGE"] for entry in self.host.journal(COUNTER)
                if entry.get("_PID") == str(self.before[COUNTER]["pid"])
                and entry.get("_SYSTEMD_UNIT") == COUNTER]

    def check_stop(self):
        count = self.counter.state()["count"]
        self.host.run("systemctl", "stop", COUNTER)
        shown = self.host.unit(COUNTER)
        check_equal((shown["ActiveState"], shown["Result"]), ("inactive", "success"), f"{COUNTER} stopped")
        bye = wait_for(lambda: [line for line in self.journal_lines() if line.startswith("bye at")],
                       "the handler of SIGTERM said goodbye")
        check(int(bye[-1].split()[-1]) >= count, f"it counted on to the end from {count}", bye)
        self.counter.check_sound("stopped")
        self.say(f"systemctl stop {COUNTER}: its handler ran ({bye[-1]!r})")

    def check_crash(self):
        self.host.run("kill", "-KILL", str(self.before[REDIS]["pid"]))
        again = lambda: self.host.unit(REDIS)["NRestarts"] == "1" and \
            self.host.main_pid(REDIS) not in (0, self.before[REDIS]["pid"])
        wait_for(again, "systemd notices the crash of redis and restarts it (Restart=always)")
        wait_for(lambda: self.host.unit(REDIS)["ActiveState"] == "active", "redis is up again")
        check_equal(self.redis("dbsize"), "0", "keys of a cold redis")
        self.say("a crash of redis' main process: noticed, restarted cold by Restart=always")

    def table(self):
        print("\n{:22} {:>11} {:>15} {:>11} {:>13}".format("unit", "frozen ms", "checkpoint ms", "image MiB",
                                                         "restore ms"))
        for unit, row in self.figures.items():
            print("{:22} {frozen:11.1f} {total:15.1f} {mib:11.1f} {restore:13.1f}".format(unit, **row))

    def run(self):
        self.say(f"test host {self.host.name} is up: systemd as PID 1")
        self.start_services()
        self.checkpoint_all()
        self.reboot()
        for unit in (REDIS, COUNTER):
            self.restore(unit)
        self.check_redis()
        self.check_counter()
        self.check_stop()
        self.check_crash()
        self.table()


def explain_failure(host, failure):
    print(f"\nTHIS DID NOT HAPPEN: {failure}\n", file=sys.stderr)
    log = host.run("journalctl", "-b", "--no-pager", "-n", "60", "-o", "short-monotonic", check=False).out
    print(f"journal of the test host:\n{log}", file=sys.stderr)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    host = Host("demo")
    try:
        host.up()
        Demo(host).run()
        print("\ndemo: all of it happened")
        return 0
    except Skip as skip:
        print(f"skipped: {skip}")
        return 77
    except Failed as failure:
        explain_failure(host, failure)
        return 1
    finally:
        host.down()


if __name__ == "__main__":
    sys.exit(main())
