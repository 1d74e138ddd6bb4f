#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs that ask to be told of their checkpoints: what they hear, what they make of it, and what if they say
nothing."""
import json

import harness
from harness import case, check, check_equal, check_in, wait_for

PORT = 7900
# Holds every connection open, and says how many there are.
DOOR = f"""import socket, selectors
door = socket.create_server(("127.0.0.1", {PORT}))
wait, guests = selectors.DefaultSelector(), 0
wait.register(door, selectors.EVENT_READ)
while True:
    for key, _ in wait.select():
        if key.fileobj is door:
            wait.register(door.accept()[0], selectors.EVENT_READ)
        elif not key.fileobj.recv(10):
            wait.unregister(key.fileobj)
            key.fileobj.close()
"""
ASKS = "[X-Checkpointd]\n# systemd skips this section\nTellSocket=/tmp/%p.door\n"


class Told:
    """A unit that runs tests/services/told.cc."""

    def __init__(self, host, name, socket, port):
        self.host, self.unit, self.folder = host, f"{name}.service", f"/var/lib/{name}"
        host.write(f"/etc/systemd/system/{self.unit}",
                   f"[Service]\nExecStart=/usr/libexec/checkpointd-tests/told {self.folder} {socket} {port}\n"
                   f"StateDirectory={name}\nPrivateTmp=yes\nUser=daemon\n")
        host.run("systemctl", "daemon-reload")
        self.restart()

    def restart(self):
        self.host.run("systemctl", "restart", self.unit)
        pid = str(self.host.main_pid(self.unit))
        wait_for(lambda: self.state().get("pid") == int(pid), f"{self.unit} reports")

    def state(self):
        return json.loads(self.host.sh(f"cat {self.folder}/state.json 2>/dev/null || echo {{}}").out)

    def crctl(self, verb, *options, check=True):
        return self.host.run("crctl", verb, self.unit, *options, check=check)

    def hears(self, *words):
        """Waits until it was told `words` and nothing else since it was last asked; returns its state."""
        wait_for(lambda: len(self.state()["told"]) >= len(self.before["told"]) + len(words), f"it hears {words}")
        now = self.state()
        check_equal(now["told"][len(self.before["told"]):], list(words), "what it was told")
        return now

    def remember(self):
        self.before = self.state()
        return self.before

    def check_went_on(self, now, when):
        for key in ("pid", "seed"):
            check_equal(now[key], self.before[key], f"{when}: {key}")
        wait_for(lambda: self.state()["count"] > now["count"], f"{when}: it goes on")

    def check_restored(self, now, when):
        check_equal(now["pid"], self.before["pid"], f"{when}: pid")
        check(now["count"] >= self.before["count"], f"{when}: it counts on", now)
        check(now["seed"] != self.before["seed"], f"{when}: it has drawn another seed", now)

    def check_connected(self, when):
        wait_for(lambda: self.state()["connected"], f"{when}: it is connected")


def policy(host, text):
    host.write("/etc/checkpointd/policy.yaml", f"version: 1\nunits: {{{text}}}\n")
    host.run("crctl", "policy", "reload")


_units = {}


def units(t):
    """One that is told at a socket, and has a connection to drop; one that is told by signals."""
    if not _units:
        host = t.host()
        host.write("/opt/door.py", DOOR)
        host.run("systemd-run", "-u", "door", "python3", "/opt/door.py")
        wait_for(lambda: str(PORT) in host.run("ss", "-Htln").out, "the door is open")
        host.sh("mkdir -p /run/checkpointd; touch /run/checkpointd/allow-faults")
        _units["socket"] = Told(host, "told", "/tmp/told.door", PORT)
        _units["signals"] = Told(host, "told-signals", "-", 0)
    return _units["socket"], _units["signals"]


@case
def its_connection_stands_in_the_way(t):
    program, _ = units(t)
    program.check_connected("fresh")
    refused = program.crctl("checkpoint", check=False)
    check(refused.code != 0, "a connection cannot be carried", refused)
    check_in("established TCP connection", refused.err, "why")


@case
def told_at_a_socket(t):
    """It drops its connection before, and connects again after: from inside its own /tmp."""
    program, _ = units(t)
    t.host().drop_in(program.unit, ASKS, "50-asks")
    program.remember()
    program.crctl("checkpoint", "--mode", "snapshot")
    program.check_went_on(program.hears("before snapshot", "after went-on"), "snapshot")
    program.check_connected("snapshot")
    for mode in ("stop", "suspend"):
        program.remember()
        program.crctl("checkpoint", "--mode", mode)
        program.crctl("restore")
        program.check_restored(program.hears(f"before {mode}", "after restored"), mode)
        program.check_connected(mode)


@case
def told_by_signals(t):
    _, program = units(t)
    policy(t.host(), '"told-signals.service": {tell: {before: SIGUSR1, after: SIGUSR2}}')
    program.remember()
    program.crctl("checkpoint", "--mode", "snapshot")
    program.check_went_on(program.hears("signal 3", "signal 17"), "snapshot")
    program.remember()
    program.crctl("checkpoint")
    program.crctl("restore")
    program.check_restored(program.hears("signal 1", "signal 16"), "stop")


@case
def told_when_it_came_to_nothing(t):
    """A worker that fails and one that dies; on the way back one that dies before it could tell."""
    program, _ = units(t)
    for action in ("fail", "kill"):
        program.remember()
        failed = program.crctl("checkpoint", "--x-fault", f"step=checkpoint.memory,action={action}", check=False)
        check(failed.code != 0, "it fails", failed)
        program.check_went_on(program.hears("before stop", "after failed"), action)
        program.check_connected(action)
    program.remember()
    program.crctl("checkpoint")
    program.crctl("restore", "--x-fault", "step=restore.tell,action=kill", check=False)
    program.check_restored(program.hears("before stop", "after restored"), "the worker died")
    program.check_connected("the worker died")


@case
def a_silent_program(t):
    program, _ = units(t)
    host = t.host()
    policy(host, '"told.service": {timeouts: {tell: 1s}}')
    host.run("touch", f"{program.folder}/silent")
    program.remember()
    failed = program.crctl("checkpoint", check=False)
    check_equal(failed.code, 7, f"exit code for a timeout ({failed.err})")
    check_in("(told): has not said at /tmp/told.door in time that it is ready", failed.err, "why")
    program.check_went_on(program.hears("before stop", "after failed"), "silent")
    policy(host, '"told.service": {timeouts: {tell: 1s}, tell: {when-silent: go-on}}')
    program.remember()
    program.crctl("checkpoint", "--mode", "snapshot")
    program.check_went_on(program.hears("before snapshot", "after went-on"), "silence passes")
    host.run("rm", f"{program.folder}/silent")


@case
def what_cannot_be_told(t):
    """All of it is said at once; a signal that nobody handles is not sent."""
    program, _ = units(t)
    host = t.host()
    policy(host, '"told.service": {tell: {before: SIGHUP, socket: /tmp/nobody}}')
    host.drop_in(program.unit, "[X-Checkpointd]\nTellAfter=SIGUSR2\nTellBefor=SIGUSR1\n", "60-wrong")
    program.remember()
    refused = program.crctl("checkpoint", check=False)
    for part in (f"/etc/systemd/system/{program.unit}.d/60-wrong.conf:3", "key TellBefor=",
                 "does not handle SIGHUP", "/tmp/nobody"):
        check_in(part, refused.err, "what is wrong")
    program.check_went_on(program.hears(), "refused")
    shown = host.run("crctl", "policy", "show", program.unit).out
    check_in('before: "SIGHUP"', shown, "the policy tells")


harness.main()
