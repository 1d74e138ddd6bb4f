# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# Test hosts: a real systemd as PID 1 of namespaces of its own. Sourced by ./dev (needs $top, die).
#
# A host's root is an overlay of the machine's / (or of a root of root.sh) under a layer with the installed project; what it
# writes goes to a tmpfs that lives from `up` to `down`, so a reboot finds its disk again. Everything
# that must go away hangs on two things: that tmpfs, and the host's cgroup, which is killed as a whole.

testhost_state=/run/checkpointd-testhost

testhost_usage() {
    cat <<-'USAGE'
	./dev testhost up NAME [--no-build] [--owner PID] [--suite SUITE] [--kit DIR] [--bind PATH[:TO]]...
	    boot it; goes down by itself when PID ends. SUITE: a root of that Debian suite (trixie) in
	    place of this machine's; exit code 77 where its packages cannot be had. DIR: an unpacked kit, which
	    lies over this machine's root. PATH: a mount of this machine to be seen there, too
	./dev testhost exec NAME -- COMMAND...              run in it; its exit code is returned
	./dev testhost reboot NAME [--crash]                shut down (or cut the power) and boot again
	./dev testhost down NAME                            end it and remove every trace
	./dev testhost list                                 the hosts there are
	./dev testhost layer                                build, and install what hosts are booted with
	./dev testhost pack FILE                            that and a root for it, as a kit for a machine that has neither
	USAGE
}

# Tests run thousands of commands in hosts: what `exec` passes on its way starts no program that bash can do without.

# Sets $cgroup_root to the cgroup2 tree, wherever it is mounted: all of /sys/fs/cgroup, or beside version 1 controllers.
testhost_find_cgroup2() {
    local type
    while read -r _ cgroup_root type _; do [ "$type" != cgroup2 ] || break; done </proc/mounts
    if [ "$type" != cgroup2 ]; then
        cgroup_root=$testhost_state/.cgroup2
        mkdir -p "$cgroup_root"
        mount -t cgroup2 cgroup2 "$cgroup_root"
    fi
    [ -w "$cgroup_root/cgroup.procs" ] || die "$cgroup_root is not writable: test hosts need a cgroup2 tree of their own"
    [ -d "$cgroup_root/checkpointd-testhost" ] || mkdir -p "$cgroup_root/checkpointd-testhost"
}

# Sets the variables that every verb uses for the host called $1.
testhost_select() {
    case $1 in '' | *[!a-z0-9-]* | -*) die "a host's name is made of a-z, 0-9 and -" ;; esac
    [ "$EUID" = 0 ] || die "test hosts need root"
    name=$1
    state=$testhost_state/$name
    [ -d "$testhost_state" ] || mkdir -p "$testhost_state"
    testhost_find_cgroup2
    cgroup=$cgroup_root/checkpointd-testhost/$name
}

# One verb at a time per host. The lock is inherited by no process of the host (9>&-).
testhost_lock() {
    exec 9>"$testhost_state/.lock-$name"
    flock 9
}

# The PID of the host's PID 1 as the machine sees it; fails when the host is not running. A PID that
# was given to someone else meanwhile is recognised by its cgroup.
testhost_leader() {
    local pid
    { read -r pid <"$state/leader"; } 2>/dev/null && [ -n "$pid" ] || return 1
    testhost_has_line "/proc/$pid/cgroup" "^0::/.*checkpointd-testhost/$name/host" || return 1
    # A zombie that waits for its namespace to empty is no host any more.
    testhost_has_line "/proc/$pid/status" '^State:[[:space:]]*[^ZX]' || return 1
    echo "$pid"
}

# Whether the file $1 is there and one of its lines matches $2.
testhost_has_line() {
    local line
    while read -r line; do [[ ! $line =~ $2 ]] || return 0; done <"$1"
    return 1
} 2>/dev/null

testhost_cgroup_empty() { ! grep -qs '^populated 1' "$cgroup/cgroup.events"; }

# testhost_wait SECONDS COMMAND...: polls until the command succeeds.
testhost_wait() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS <= deadline)) || return 1
        sleep 0.02
    done
}

testhost_make_cgroup() {
    local dir controller
    mkdir -p "$cgroup/host/testhost-exec" "$cgroup/monitor"
    for dir in "$cgroup_root" "$cgroup_root/checkpointd-testhost" "$cgroup"; do
        for controller in $(cat "$dir/cgroup.controllers"); do
            # Refused where the machine gives this one away no further; systemd does without.
            echo "+$controller" 2>/dev/null >"$dir/cgroup.subtree_control" || true
        done
    done
}

# Kills every process of the host, frozen or stopped ones too, and removes its cgroups.
testhost_power_off() {
    [ -d "$cgroup" ] || return 0
    echo 1 >"$cgroup/cgroup.kill"
    testhost_wait 60 testhost_cgroup_empty || die "processes of host $name do not die: $cgroup"
    find "$cgroup" -mindepth 1 -depth -type d -exec rmdir {} + 2>/dev/null || true
    rm -f "$state/leader"
}

# Seconds that make CLOCK ($1: monotonic or boottime) start near zero. Offsets count from the
# machine's first namespace (time_namespaces(7)), so an offset of our own has to be added.
testhost_clock_offset() {
    local own now
    own=$(awk -v clock="$1" '$1 == clock { print $2 }' /proc/self/timens_offsets)
    now=$(python3 -c "import time; print(int(time.clock_gettime(time.CLOCK_${1^^})))")
    echo $((own - now + 3))
}

testhost_boot() {
    local began=$EPOCHREALTIME boots monitor leader answer
    testhost_make_cgroup
    mkdir -p "$state/root"
    rm -f "$state/go"
    mkfifo "$state/go"
    (
        echo $BASHPID >"$cgroup/host/cgroup.procs"
        cd /
        exec setsid unshare --mount --pid --uts --ipc --net --cgroup --fork \
            --time --monotonic "$(testhost_clock_offset monotonic)" \
            --boottime "$(testhost_clock_offset boottime)" \
            "$top/tests/host/init.sh" "$state" "$name"
    ) </dev/null >>"$state/console.log" 2>&1 9>&- &
    monitor=$!
    testhost_wait 60 test -s "$state/leader" || testhost_boot_failed "no process came up"
    # unshare stays as the parent of PID 1; a process in the host's root cgroup would keep systemd
    # from handing controllers down (cgroups(7), "no internal processes").
    echo "$monitor" >"$cgroup/monitor/cgroup.procs"
    echo go >"$state/go"
    testhost_wait 120 testhost_has_bus || testhost_boot_failed "systemd does not answer"
    answer=$(testhost_run timeout 180 systemctl is-system-running --wait) || true
    [ "$answer" = running ] || testhost_boot_failed "the system is '$answer'"
    disown "$monitor"
    boots=$(($(cat "$state/boots" 2>/dev/null || echo 0) + 1))
    echo "$boots" >"$state/boots"
    echo "testhost $name: boot $boots, running after $(elapsed "$began") s"
}

testhost_has_bus() {
    testhost_leader >/dev/null && testhost_run test -S /run/systemd/private -a \
        -S /run/dbus/system_bus_socket 2>/dev/null
}

testhost_boot_failed() {
    {
        echo "testhost $name did not boot: $1"
        tail -n 20 "$state/console.log"
        if testhost_leader >/dev/null; then
            testhost_run timeout 10 systemctl --failed --no-pager
            testhost_run timeout 10 systemctl list-jobs --no-pager
            testhost_run timeout 10 journalctl -b -p warning -n 40 --no-pager
        fi
    } >&2 2>&1
    testhost_power_off
    exit 1
}

# Runs a command in the host: in its own cgroup, all namespaces, a clean environment. It dies with us.
testhost_run() {
    local leader group
    leader=$(testhost_leader) || die "host $name is not running (./dev testhost up $name)"
    group=$cgroup/host/testhost-exec/$BASHPID
    mkdir -p "$group"
    local status=0
    (
        echo $BASHPID >"$group/cgroup.procs"
        # --root: where the machine is itself a chroot, a mount namespace's root is not PID 1's.
        exec nsenter -t "$leader" --mount --root --pid --uts --ipc --net --cgroup --time \
            env --chdir=/ -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
            HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}" setpriv --pdeathsig KILL -- "$@"
    ) 9>&- || status=$?
    rmdir "$group" 2>/dev/null || true  # a daemon that the command left behind keeps it
    return $status
}

# The project as `meson install` puts it, kept in the build folder and copied into each host.
testhost_install_layer() {
    local layer=$top/build/testhost-layer
    rm -rf "$layer"
    meson install -C "$top/build" --no-rebuild --quiet --strip --destdir "$layer" >/dev/null
    mkdir -p "$layer"
}

# $1: the root of root.sh to boot in; empty: this machine's own. $2: a kit to boot from; empty: the build folder.
testhost_make_disk() {
    local kit=${2:-$top/build}
    mkdir -p "$state/disk"
    mount -t tmpfs -o mode=755,size=75% "testhost-$name" "$state/disk"
    mkdir "$state/disk/upper" "$state/disk/work" "$state/disk/layer"
    # The layer must not lie below /, which is the overlay's other lower layer.
    cp -a "$kit/testhost-layer/." "$state/disk/layer/"
    echo "${1:-/}" >"$state/disk/lower"
    [ -z "$1" ] || suite_libraries "$state/disk/layer" "$1"
    if [ -n "$2" ]; then
        cp -a "$kit/root" "$state/disk/root"
        echo "$state/disk/root:/" >"$state/disk/lower"
    fi
    printf '%s\n' "${testhost_binds[@]}" >"$state/disk/binds"
    chmod 755 "$state/disk/layer" "$state/disk/upper"
}

# What a machine needs that has neither packages nor a way to them: the project, its libraries, systemd and all below it.
testhost_pack() {
    local file=${1-} root kit=$top/build/kit
    [ -n "$file" ] || die "testhost pack: no file"
    [[ $file = /* ]] || file=$PWD/$file
    build_project
    testhost_install_layer
    root=$(suite_root trixie)
    rm -rf "$kit"
    mkdir "$kit"
    cp -a "$top/build/testhost-layer" "$kit/"
    suite_libraries "$kit/testhost-layer" "$root"
    git -C "$top" describe --always --dirty --abbrev=12 >"$kit/commit" || echo unknown >"$kit/commit"
    tar -c -C "$kit" testhost-layer commit --exclude "${root##*/}/var/lib/apt/*" --exclude "${root##*/}/var/lib/dpkg/info" \
        --transform "s,^${root##*/},root,rSh" -C "${root%/*}" "${root##*/}" | xz -T0 -6 >"$file"
    rm -rf "$kit"
    ls -l "$file"
}

# Removes whatever is there under this name, whole or in pieces.
testhost_remove() {
    testhost_power_off
    while mountpoint -q "$state/disk"; do umount -l "$state/disk"; done
    rm -rf "$state"
    rmdir "$cgroup" "${cgroup%/*}" 2>/dev/null || true
}

# Takes the host down when its owner (a test run) ends, however it ends.
testhost_watch_owner() {
    setsid bash -c 'tail --pid="$1" -f /dev/null; exec "$2" testhost down "$3"' \
        testhost-owner-watch "$1" "$top/dev" "$name" </dev/null >/dev/null 2>&1 9>&- &
    echo $! >"$state/watch"
    echo "$1" >"$state/owner"
    disown
}

testhost_stop_watch() {
    local pid
    pid=$(cat "$state/watch" 2>/dev/null) || return 0
    grep -qs testhost-owner-watch "/proc/$pid/cmdline" && [ "$pid" != $$ ] || return 0
    kill -- "-$pid" 2>/dev/null || true
}

# Whether the host is up for somebody: not half booted by a killed `up`, nor left by a dead owner.
testhost_in_use() {
    local owner
    [ -e "$state/ready" ] && testhost_leader >/dev/null || return 1
    owner=$(cat "$state/owner" 2>/dev/null) || return 0
    [ -d "/proc/$owner" ]
}

testhost_up() {
    local build=yes owner='' root='' kit='' testhost_binds=()
    testhost_select "${1-}"
    shift
    while [ $# -gt 0 ]; do
        case $1 in
            --no-build) build=no ;;
            --owner) owner=$2 && shift ;;
            --suite) root=$(suite_root "$2") || exit 77; shift ;;
            --kit) kit=$(readlink -f "$2") build=no && shift ;;
            --bind) testhost_binds+=("$2") && shift ;;
            *) die "testhost up: unknown option $1" ;;
        esac
        shift
    done
    [ $build = no ] && [ -d "${kit:-$top/build}/testhost-layer" ] || {
        build_project
        testhost_install_layer
    }
    testhost_lock
    testhost_in_use && die "host $name is already running (./dev testhost down $name)"
    testhost_stop_watch
    testhost_remove  # what a killed run left
    trap 'testhost_remove' EXIT
    mkdir -p "$state"
    testhost_make_disk "$root" "$kit"
    testhost_boot
    [ -z "$owner" ] || testhost_watch_owner "$owner"
    touch "$state/ready"
    trap - EXIT
}

testhost_exec() {
    testhost_select "${1-}"
    shift
    [ "${1-}" != -- ] || shift
    [ $# -gt 0 ] || die "testhost exec: no command"
    testhost_run "$@"
}

testhost_is_off() { ! testhost_leader >/dev/null; }

testhost_reboot() {
    local leader
    testhost_select "${1-}"
    testhost_lock
    leader=$(testhost_leader) || die "host $name is not running"
    if [ "${2-}" != --crash ]; then
        kill -s RTMIN+5 "$leader"  # systemd(1): start reboot.target
        testhost_wait 180 testhost_is_off || echo "testhost $name: no clean shutdown in 180 s" >&2
    fi
    testhost_power_off
    trap 'testhost_power_off' EXIT
    testhost_boot
    trap - EXIT
}

testhost_down() {
    testhost_select "${1-}"
    testhost_lock
    testhost_stop_watch
    testhost_remove
    rm -f "$testhost_state/.lock-$name"
    umount "$testhost_state/.cgroup2" 2>/dev/null || true
    rmdir "$testhost_state/.cgroup2" "$testhost_state" 2>/dev/null || true
}

testhost_list() {
    local dir pid
    for dir in "$testhost_state"/*/; do
        [ -d "$dir" ] || continue
        testhost_select "$(basename "$dir")"
        pid=$(testhost_leader) && pid="running, PID $pid" || pid="not running"
        echo "$name: $pid, boots: $(cat "$state/boots" 2>/dev/null || echo 0)"
    done
}

testhost_main() {
    local verb=${1-}
    [ $# -eq 0 ] || shift
    case $verb in
        up | exec | reboot | down | list | pack) "testhost_$verb" "$@" ;;
        layer) build_project && testhost_install_layer ;;
        *) testhost_usage && exit 2 ;;
    esac
}
