#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trees on AMD GPUs go down and come back by the plugin as it is installed, which takes files for devices that look like
them, and copies by the commands of a copy engine; and, where CRIU_AMDGPU names a `criu` that has its own plugin for AMD GPUs
(a wrapper that adds --libdir), from ours to that and back. The driver is an emulation."""
import os

import amdgpu_units
import harness
from amdgpu_units import HOME
from harness import Skip, case, check, check_equal, check_in
from trees import COMMAND, GROUP, IMAGES, kfd

INSTALLED = "/var/tmp/installed"  # what the emulation's plugin lies over
AS_DEVICES = f"env LD_PRELOAD={HOME}/libkfd-devices.so LD_LIBRARY_PATH={HOME}"
TOPOLOGY = "/sys/class/kfd/kfd/topology"
OURS = {"ours": COMMAND, "ours as installed": f"{AS_DEVICES} CRIU_LIBS_DIR={INSTALLED} {COMMAND}"}


def tree(t):
    """On a machine whose emulated devices are found where real ones would be."""
    host = t.host()
    if not host.exists(INSTALLED):
        host.sh(f"mkdir {INSTALLED}; cp {amdgpu_units.PLUGIN} {INSTALLED}/amdgpu.so")
    one = kfd(t)
    if not host.exists(TOPOLOGY):
        host.sh(f"mkdir -p /run/class/{TOPOLOGY[len('/sys/class/'):]}; mount -t overlay overlay -o lowerdir=/run/class:/sys/class /sys/class; "
                f"mount --bind {amdgpu_units.FOLDER}/topology {TOPOLOGY}")
    return one


def theirs():
    criu = os.environ.get("CRIU_AMDGPU")
    if not criu:
        raise Skip("CRIU_AMDGPU names no criu with a plugin for AMD GPUs")
    return f"{AS_DEVICES} {criu}"


def down_and_up(one, when, dumper, restorer):
    before, buffers = one.look(), one.buffers()
    one.dump(criu=dumper)
    one.check_gone(when)
    one.check_device(f"{when}: dumped", running=False)
    one.restore(criu=restorer)
    one.check_counts(when, before)
    one.check_mappings(when, buffers)


@case
def the_plugin_as_it_is_installed(t):
    down_and_up(tree(t), "ours as installed", *[OURS["ours as installed"]] * 2)


@case
def copies_that_fail(t):
    one = tree(t)
    since = one.look()
    for fault, nth in (("copy-from fail 5", 1), ("copy-from fail 5", 4)):
        amdgpu_units.have_faults(one.host, f"{fault} {nth}")
        outcome = one.dump(criu=OURS["ours as installed"], check=False)
        check(outcome.code != 0, f"{fault} {nth}: it is refused", outcome)
        check_in("Operation canceled", outcome.err, f"{fault} {nth}")
        amdgpu_units.have_faults(one.host)
        since = one.check_counts(f"{fault} {nth}", since)
    one.dump(criu=OURS["ours as installed"])
    amdgpu_units.have_faults(one.host, "copy-to fail 5 3")
    check(one.restore(criu=OURS["ours as installed"], check=False).code != 0, "a restore is refused")
    amdgpu_units.have_faults(one.host)
    one.check_device("a restore that failed", running=False)
    one.restore(criu=OURS["ours as installed"])
    one.check_counts("in the end", since)


@case
def from_ours_to_criu_and_back(t):
    criu, one = theirs(), tree(t)
    for name, ours in OURS.items():
        down_and_up(one, f"{name} to CRIU", ours, criu)
        down_and_up(one, f"CRIU to {name}", criu, ours)
    print(one.host.sh(f"{criu} --version").out.strip(), flush=True)


RECORDS = """cd {images}; for f in amdgpu-kfd-*.img; do tail -c +9 $f |
protoc -I {source}/plugins/amdgpu --decode=checkpointd.amdgpu.pb.Process amdgpu.proto; done
for f in amdgpu-renderD-*.img; do tail -c +9 $f | protoc -I {source}/plugins/amdgpu --decode=checkpointd.amdgpu.pb.RenderNode amdgpu.proto; done
sha256sum $(ls amdgpu-pages-* | sort -V) | cut -d' ' -f1
"""


def records(one, images):
    """What an image says of its GPUs, without numbers that are each image's own: handles of whoever wrote it, ids of files."""
    out = one.host.sh(RECORDS.format(images=images, source=harness.TOP)).out
    return [line for line in out.splitlines() if not line.startswith(("  handle:", "id:"))]


@case
def the_same_records_as_criu(t):
    criu, one = theirs(), tree(t)
    if harness.SUITE:
        raise Skip("the sources are not in that root")
    since = one.look()
    one.host.sh(f"kill -STOP $(cat {GROUP}/cgroup.procs)")
    one.dump("--leave-running", criu=COMMAND)
    one.dump("--leave-running", criu=criu, images=f"{IMAGES}-criu")
    one.host.sh(f"kill -CONT $(cat {GROUP}/cgroup.procs)")
    one.check_counts("dumped twice", since)
    ours = records(one, IMAGES)
    check(len(ours) > 300, "records", ours)
    check_equal("\n".join(ours), "\n".join(records(one, f"{IMAGES}-criu")), "records of one program")


harness.main()
