#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Runs as PID 1 of a test host's fresh namespaces: makes its file systems, then becomes systemd.
# usage: init.sh STATE_DIR HOST_NAME      (started by tests/host/testhost.sh only)
set -eu
state=$1 name=$2
disk=$state/disk root=$state/root

# The /proc seen here is still the machine's, so it tells our PID as the machine sees it.
read -r outer_pid _ </proc/self/stat
echo "$outer_pid" >"$state/leader"
read -r -t 20 _ <>"$state/go"  # the booter has moved the monitor out of our cgroup

# A name is a mask: a link to /dev/null. What waits for hardware, for a network or for a person.
masked_units='
    getty.target console-getty.service systemd-timesyncd.service systemd-udevd.service
    systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udev-trigger.service
    systemd-udev-settle.service systemd-networkd.service systemd-networkd.socket
    systemd-network-generator.service systemd-resolved.service networking.service
    systemd-modules-load.service kmod-static-nodes.service systemd-firstboot.service
    ldconfig.service systemd-hwdb-update.service systemd-journal-catalog-update.service
    systemd-binfmt.service proc-sys-fs-binfmt_misc.automount proc-sys-fs-binfmt_misc.mount
    sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount
    sys-fs-fuse-connections.mount dev-hugepages.mount systemd-remount-fs.service
    systemd-random-seed.service systemd-repart.service systemd-pstore.service
    systemd-journald-audit.socket systemd-machine-id-commit.service
    systemd-ask-password-console.path systemd-ask-password-wall.path
    systemd-rfkill.service systemd-rfkill.socket systemd-initctl.socket'

# First boot only: the machine's own configuration is whited out, nothing of it is enabled here.
configure_root() {
    local etc=$root/etc unit file
    rm -rf "$etc"/systemd/system "$etc"/rc?.d "$etc"/systemd/network "$root"/var/log/journal
    mkdir -p "$etc"/systemd/system "$root"/var/log/journal "$etc"/sysctl.d
    for unit in $masked_units; do ln -s /dev/null "$etc/systemd/system/$unit"; done
    ln -s /lib/systemd/system/multi-user.target "$etc/systemd/system/default.target"
    # Shipped sysctl settings reach beyond our namespaces; those of checkpointd are the ones to test.
    for file in "$root"/usr/lib/sysctl.d/*.conf "$etc"/sysctl.d/*.conf; do
        case $file in *checkpointd*) continue ;; esac
        ln -sf /dev/null "$etc/sysctl.d/${file##*/}"
    done
    rm -f "$etc/machine-id" "$etc/fstab" "$root/var/lib/dbus/machine-id" "$etc/.updated"
    tr -d - </proc/sys/kernel/random/uuid >"$etc/machine-id"
    echo "$name" >"$etc/hostname"
    printf '127.0.0.1 localhost %s\n' "$name" >"$etc/hosts"
    : >"$etc/fstab"
    [ ! -d "$root/usr/lib/checkpointd-test-libraries" ] || ldconfig -r "$root"  # suite_libraries
    touch "$disk/configured"
}

# What lies on other mounts of the machine than /: the overlay shows the empty folder below it.
show_binds() {
    local from to
    while IFS=: read -r from to; do
        [ -n "$from" ] || continue
        to=$root${to:-$from}
        if [ -d "$from" ]; then
            mkdir -p "$to"
        else
            mkdir -p "${to%/*}"
            [ -e "$to" ] || : >"$to"
        fi
        mount --rbind "$from" "$to"
    done <"$disk/binds"
}

make_devices() {
    local dev=$root/dev node
    mount -t tmpfs -o mode=755,nosuid,size=4m tmpfs "$dev"
    while read -r node numbers; do
        # shellcheck disable=SC2086
        mknod -m 666 "$dev/$node" c $numbers
    done <<-NODES
		null 1 3
		zero 1 5
		full 1 7
		random 1 8
		urandom 1 9
		tty 5 0
	NODES
    mkdir "$dev/pts" "$dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$dev/pts"
    mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$dev/shm"
    ln -s pts/ptmx "$dev/ptmx"
    ln -s /proc/self/fd "$dev/fd"
    ln -s /proc/self/fd/0 "$dev/stdin"
    ln -s /proc/self/fd/1 "$dev/stdout"
    ln -s /proc/self/fd/2 "$dev/stderr"
}

# pid_max belongs to the PID namespace since Linux 6.14; before, writing it would change the machine.
pid_max_is_ours() {
    local major minor
    IFS=. read -r major minor _ </proc/sys/kernel/osrelease
    ((major > 6 || (major == 6 && ${minor%%[!0-9]*} >= 14)))
}

# /proc/sys is read-only but for what belongs to our namespaces, as systemd-nspawn has it.
make_proc() {
    local proc=$root/proc file writable='net kernel/ns_last_pid kernel/hostname kernel/domainname'
    mount -t proc -o nosuid,nodev,noexec proc "$proc"
    if pid_max_is_ours; then
        writable="$writable kernel/pid_max"
        echo 4194304 >"$proc/sys/kernel/pid_max" || true
    fi
    mount --bind "$proc/sys" "$proc/sys"
    for file in $writable; do mount --bind "$proc/sys/$file" "$proc/sys/$file"; done
    cat /proc/sys/kernel/random/uuid >"$disk/boot_id"
    mount --bind "$disk/boot_id" "$proc/sys/kernel/random/boot_id"
    mount -o remount,bind,ro "$proc/sys"
}

mount -t overlay -o "lowerdir=$disk/layer:$(cat "$disk/lower"),upperdir=$disk/upper,workdir=$disk/work,xino=on" \
    "testhost-$name" "$root"
[ -e "$disk/configured" ] || configure_root
show_binds
make_devices
make_proc
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$root/run"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/tmp"
hostname "$name"

cd "$root"
pivot_root . .
umount -l .
cd /
exec env -i container=checkpointd-testhost PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    /lib/systemd/systemd --system --log-target=journal --show-status=no
