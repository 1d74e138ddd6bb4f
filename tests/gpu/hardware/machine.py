# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a machine has for a proof on its GPU, and what it lacks."""
import json
import os
import pathlib
import platform
import re
import shutil
import stat
import subprocess
import sys

import harness

# In a process of its own: a driver that is loaded stays, and one that hangs is left behind.
ASK_DRIVER = """import ctypes, json, re
told = {"missing": [], "devices": []}
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError as error:
    told["missing"].append(f"the driver's library: {error}")
else:
    number, text, size = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    told["library"] = re.search(r"\\S*/libcuda\\.so\\S*", open("/proc/self/maps").read()).group()
    told["code"] = cuda.cuInit(0)
    cuda.cuDriverGetVersion(ctypes.byref(number))
    told["version"] = number.value
    told["missing"] += [f"the driver's call {name}" for name in ("cuCheckpointProcessLock", "cuCheckpointProcessGetRestoreThreadId")
                        if not hasattr(cuda, name)]
    count = ctypes.c_int()
    if told["code"] == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0:
        for index in range(count.value):
            cuda.cuDeviceGet(ctypes.byref(number), index)
            cuda.cuDeviceGetName(text, len(text), number)
            cuda.cuDeviceTotalMem_v2(ctypes.byref(size), number)
            told["devices"].append([text.value.decode(), size.value >> 20])
print(json.dumps(told))
"""

# What a test host is made of, tried out.
TRY_HOST = """exec 2>&1; set -e
unshare --time true
unshare --mount --pid --uts --ipc --net --cgroup --fork bash -ec '
mount -t tmpfs tmpfs /mnt; mkdir /mnt/upper /mnt/work /mnt/root /mnt/cgroup
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
mount -t proc proc /mnt/root/proc
mount -t cgroup2 cgroup2 /mnt/cgroup'
"""

FLOOR = (6, 1)
FIRST_DRIVER = 12080
# As ./dev has it.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def said(*command, timeout=60):
    """The exit code of a command on this machine, and what it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, (done.stdout + done.stderr).strip()


def ask_driver(run):
    """`run`: runs a command and answers with its output."""
    out = run(sys.executable, "-c", ASK_DRIVER)
    try:
        return json.loads(out.splitlines()[-1])
    except (ValueError, IndexError):
        return {"missing": [f"an answer of the driver: {out[-300:]}"], "devices": []}


def facts(driver):
    """Lines on the GPUs, their driver, and the machine."""
    version = driver.get("version", 0)
    module = pathlib.Path("/proc/driver/nvidia/version")
    said_by_module = module.read_text().splitlines()[0] if module.exists() else "kernel module unknown"
    model = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    total = re.search(r"MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text()).group(1)
    gpus = ", ".join(f"{name} with {mib} MiB" for name, mib in driver["devices"])
    return [f"GPU: {gpus or 'none'}", f"driver: CUDA {version // 1000}.{version % 1000 // 10}; {said_by_module}",
            f"machine: {model[0] if model else platform.machine()}, {os.cpu_count()} processors, {int(total) >> 20} GiB",
            f"kernel: Linux {platform.release()}, {platform.version()}"]


def missing_driver(driver):
    lacks = [f"{what}: install NVIDIA's driver, 570 or newer; where it lies in a folder of its own, name that in LD_LIBRARY_PATH"
             for what in driver["missing"]]
    for node in ("nvidiactl", "nvidia0", "nvidia-uvm"):
        if not os.path.exists(f"/dev/{node}"):
            lacks.append(f"/dev/{node}: modprobe nvidia nvidia_uvm; nvidia-modprobe -u -c 0 (in a container: give it the GPU)")
    if driver.get("code", 0) != 0:
        lacks.append(f"a driver that works: cuInit() answers {driver['code']}; see nvidia-smi and dmesg")
    elif not driver["missing"] and driver["version"] < FIRST_DRIVER:
        lacks.append(f"a driver that can checkpoint: this one has CUDA {driver['version'] / 1000:.2f}; 12.8 (570) is the first")
    return lacks


def missing_host(built_here):
    """`built_here`: its programs are this machine's own, not those of a kit."""
    lacks = [f"the command {name}: install it (util-linux, mount, procps, gawk)"
             for name in ("unshare", "nsenter", "setpriv", "flock", "mount", "awk", "python3") if not shutil.which(name, path=PATH)]
    if tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2]) < FLOOR:
        lacks.append(f"a kernel that can: this is {platform.release()} (4.4.0 is what gVisor says), and 6.1 is the oldest that will do")
    if built_here and not os.path.exists("/lib/systemd/systemd"):
        lacks.append("systemd and dbus: ./dev deps, or --kit FILE, made elsewhere by ./dev testhost pack FILE")
    if said("stat", "-c", "%d:%i", "/") != said("nsenter", "--mount=/proc/self/ns/mnt", "stat", "-c", "%d:%i", "/"):
        lacks.append("a root that is its mount namespace's: in a chroot a restored unit does not find its files; pivot_root(8) instead")
    code, text = said("bash", "-c", TRY_HOST)
    if code != 0:
        lacks.append(f"what test hosts are made of: {text or 'unknown'}; needs root with all capabilities, time namespaces, "
                     "overlayfs, and a cgroup2 tree that may be mounted")
    return lacks


def missing_memory(mib, driver):
    """Contents of two processes come to the host's memory, and two images of them to a tmpfs."""
    free = int(re.search(r"MemAvailable:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text()).group(1)) >> 10
    lacks = []
    if free < 2 * mib * 4:
        lacks.append(f"{2 * mib * 4} MiB of free memory: there are {free}; choose a smaller --mib")
    if driver["devices"] and driver["devices"][0][1] < 2 * mib + 4096:
        lacks.append(f"{2 * mib + 4096} MiB on the first GPU: there are {driver['devices'][0][1]}; choose a smaller --mib")
    return lacks


def missing_build(folder):
    """What was installed for test hosts is what was built last, and finds its libraries."""
    layer = folder / "testhost-layer"
    if not layer.is_dir():
        return ["the installed project: ./dev testhost layer (needs registries, or all packages of ./dev deps)"]
    code, text = said("meson", "introspect", str(folder), "--installed")
    if code != 0:
        return [f"meson, which tells what was built: {text[-200:]}"]
    fresh = [built for built in json.loads(text) if os.path.exists(built) and os.path.getmtime(built) > layer.stat().st_mtime]
    if fresh:
        return [f"an installation of what was built last ({fresh[0]}, ...): ./dev testhost layer"]
    return missing_libraries(layer)


def missing_libraries(layer):
    programs = [str(path) for path in (layer / "usr/libexec/checkpointd").iterdir() if path.is_file()]
    _, text = said("ldd", *programs)
    absent = sorted(set(re.findall(r"(\S+) => not found", text)))
    return [f"libraries of what was built ({', '.join(absent)}): ./dev deps, or --kit FILE"] if absent else []


def python_with_torch():
    """One that can import torch, as its true name and where torch lies; None where there is none."""
    ask = "import os, sys, torch; print(os.path.realpath(sys.executable), os.path.dirname(os.path.dirname(torch.__file__)), " \
          "torch.__version__, torch.cuda.is_available())"
    for python in dict.fromkeys(filter(None, (shutil.which("python3"), sys.executable, "/usr/bin/python3"))):
        code, text = said(python, "-c", ask, timeout=180)
        if code == 0:
            return text.splitlines()[-1].split()
    return None


def own_mounts(paths):
    """Those of this machine's mounts that `paths` lie on, and all that tell of NVIDIA: an overlay of / shows none of them.
    A container's toolkit mounts libraries one by one."""
    points = [line.split()[4].replace("\\040", " ") for line in open("/proc/self/mountinfo")]
    found = {point for point in points if re.search("nvidia|cuda|libnv", point)}
    for path in map(os.path.realpath, filter(None, paths)):
        found.add(max((point for point in points if f"{path}/".startswith(f"{point.rstrip('/')}/")), key=len))
    hidden = ("/proc", "/sys", "/dev", "/run", "/tmp")
    return sorted(point for point in found if point != "/" and not re.match(f"({'|'.join(hidden)})(/|$)", point))


def give_devices(host):
    """The units' /dev has the machine's nodes."""
    for node in [*pathlib.Path("/dev").glob("nvidia*"), *pathlib.Path("/dev").glob("nvidia-caps/*")]:
        about = node.stat()
        if stat.S_ISCHR(about.st_mode):
            host.sh(f"mkdir -p {node.parent}; mknod -m 666 {node} c {os.major(about.st_rdev)} {os.minor(about.st_rdev)}")


def commit():
    code, text = said("git", "-C", str(harness.TOP), "describe", "--always", "--dirty", "--abbrev=12")
    return text if code == 0 else "unknown"
