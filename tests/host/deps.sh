# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# What the build, the tests and the demo need of Debian 12. Sourced by ./dev.

build_packages='build-essential meson ninja-build pkg-config ccache
    libsdbus-c++-dev libsdbus-c++-bin libsystemd-dev libprotobuf-dev protobuf-compiler
    libyaml-cpp-dev libcap-dev libfmt-dev libexpected-dev libcli11-dev libgtest-dev libgmock-dev
    nlohmann-json3-dev libxxhash-dev libfuse3-dev'
test_packages='systemd systemd-sysv dbus polkitd redis-server redis-tools util-linux iproute2 procps
    python3-minimal libpython3-stdlib git ca-certificates mmdebstrap debian-archive-keyring'
lint_packages='clang-format clang-tidy'
fuzz_packages='clang'

# Those of the arguments that are not installed.
missing_packages() {
    comm -23 <(printf '%s\n' "$@" | sort -u) \
        <(dpkg-query -W -f='${Package} ${Status}\n' "$@" 2>/dev/null |
            sed -n 's/ install ok installed$//p' | sort -u)
}

# Packages that bring a service must not start it on this machine: only test hosts run it.
install_packages() {
    local guard=/usr/sbin/policy-rc.d had_redis=no
    [ "$(id -u)" = 0 ] || die "packages are missing ($*): run ./dev deps as root"
    [ -e /lib/systemd/system/redis-server.service ] && had_redis=yes
    if [ ! -e $guard ]; then
        printf '#!/bin/sh\nexit 101\n' >$guard
        chmod 755 $guard
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
    [ $had_redis = yes ] || systemctl disable --quiet redis-server.service 2>/dev/null || true
    if grep -qx 'exit 101' $guard 2>/dev/null; then rm -f $guard; fi
    trap - EXIT
}

ensure_packages() {
    local missing
    # shellcheck disable=SC2046,SC2086
    missing=$(missing_packages "$@" | tr '\n' ' ')
    # shellcheck disable=SC2086
    [ -z "$missing" ] || install_packages $missing
}
