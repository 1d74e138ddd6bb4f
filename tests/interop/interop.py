#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Images go both ways between this engine and CRIU 4, and crit reads every file of ours.

Usage: interop.py CRIU_OF_OURS VICTIM. The peer is $CRIU_PEER or a `criu` of version 4 or newer in the
PATH, crit is $CRIT_PEER or `crit`; what is not there is skipped and said so. Everything runs in a PID
namespace of its own: old PIDs are free there, and nothing outlives the test.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

SKIP = 77  # meson's exit status for a skipped test
CHECKS = 23  # lines in a victim's report


def peer_criu():
    peer = os.environ.get("CRIU_PEER") or shutil.which("criu")
    if not peer:
        return None
    text = subprocess.run([peer, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"Version: (\d+)", text)
    return peer if found and int(found.group(1)) >= 4 and "Engine:" not in text else None


def wait_for(path, seconds=60):
    end = time.monotonic() + seconds
    while not os.path.exists(path):
        if time.monotonic() > end:
            raise AssertionError(f"{path} did not come within {seconds} s")
        time.sleep(0.005)


def run(criu, action, images, *more):
    command = [criu, action, "-D", images, "-o", action + ".log", "-v4", *more]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        log = os.path.join(images, action + ".log")
        tail = open(log, errors="replace").read()[-3000:] if os.path.exists(log) else ""
        raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{done.stderr}\n{tail}")


def ask(directory, when):
    report = os.path.join(directory, "report")
    if os.path.exists(report):
        os.unlink(report)
    open(os.path.join(directory, "ask"), "w").close()
    wait_for(report)
    lines = open(report).read().splitlines()
    bad = [line for line in lines if not line.startswith("ok ")]
    assert not bad and len(lines) == CHECKS, f"{when}: {bad or len(lines)}"


def reap():
    """We are the namespace's init: all that is left to die dies as our child, and then its PID is free."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.005)
        except ChildProcessError:
            return
    left = subprocess.run(["ps", "axf", "-o", "pid,ppid,stat,wchan,args"], capture_output=True, text=True)
    raise AssertionError(f"processes are left:\n{left.stdout}")


def leave(pid):
    """Ends a tree: the victim's child goes when its pipe does."""
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        pass
    reap()


def cycle(name, victim, dumper, restorer, look=None):
    """Dumps a victim with one engine, restores it with another, twice over."""
    with tempfile.TemporaryDirectory(prefix="interop.") as top:
        home = os.path.join(top, "victim")
        os.mkdir(home)
        pid = subprocess.Popen([victim, home], start_new_session=True, stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid
        try:
            wait_for(os.path.join(home, "ready"))
            ask(home, f"{name}, before")
            for turn in ("first", "second"):
                images = os.path.join(top, turn)
                os.mkdir(images)
                run(dumper, "dump", images, "-t", str(pid))
                reap()
                run(restorer, "restore", images, "-d")
                ask(home, f"{name}, after the {turn} time")
                if look and turn == "first":
                    look(images)
        finally:
            leave(pid)
    print(f"ok {name}")


def crit_reads(crit):
    def look(images):
        own = [file for file in sorted(os.listdir(images)) if file.endswith(".img")
               and not file.startswith(("pages-", "checkpointd-"))]
        assert len(own) > 15, own
        for file in own:
            done = subprocess.run([crit, "decode", "-i", os.path.join(images, file)],
                                  capture_output=True, text=True, cwd="/")
            assert done.returncode == 0 and '"entries"' in done.stdout, f"{file}: {done.stderr}"
    return look


def inside(ours, victim):
    peer = peer_criu()
    crit = os.environ.get("CRIT_PEER") or shutil.which("crit")
    cycle("ours to ours" + (", read by crit" if crit else ""), victim, ours, ours,
          crit_reads(crit) if crit else None)
    if peer:
        cycle("ours to CRIU", victim, ours, peer)
        cycle("CRIU to ours", victim, peer, ours)
    for what, there in (("CRIU 4 (CRIU_PEER, criu)", peer), ("crit (CRIT_PEER, crit)", crit)):
        if not there:
            print(f"skipped: no {what}")


def main():
    if os.environ.get("INTEROP_INSIDE") == "1":
        inside(*sys.argv[1:3])
        return 0
    if os.geteuid() != 0:
        print("skipped: needs root")
        return SKIP
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*command, "true"], capture_output=True).returncode != 0:
        print("skipped: cannot make a PID namespace here")
        return SKIP
    # Restored trees must not inherit what a test runner has open.
    os.closerange(3, 1024)
    return subprocess.run([*command, sys.executable, *sys.argv],
                          env={**os.environ, "INTEROP_INSIDE": "1"}).returncode


if __name__ == "__main__":
    sys.exit(main())
