# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# Roots of other Debian suites, in which test hosts boot instead of the machine's own. Sourced by ./dev
# (needs elapsed).
#
# A root is made of the suite's packages from the mirror that the machine's own packages come from, and
# kept in $suite_roots, outside of any checkout; what it is made of is part of its name. Nothing is ever
# written to it afterwards: it is the lowest layer of a host's overlay.

suite_roots=/var/cache/checkpointd-tests
suite_packages='systemd systemd-sysv dbus polkitd redis-server redis-tools util-linux iproute2 procps
    python3-minimal libpython3-stdlib'

suite_root_path() {
    local recipe
    # shellcheck disable=SC2086
    recipe=$(echo 1 $suite_packages | sha256sum)
    echo "$suite_roots/$1-${recipe:0:8}"
}

# Where apt has the machine's own suite from.
apt_mirror() {
    local own
    own=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk -v own="$own" '($1 == own || $1 == "stable") && $2 == "main" && !uri { uri = $3 }
            END { print uri }'
}

# suite_root_make SUITE PATH: its output is the log.
suite_root_make() {
    local mirror proxy='' include options=()
    mirror=$(apt_mirror)
    [ -n "$mirror" ] || { echo "apt knows no mirror of this machine's own suite" && return 1; }
    eval "$(apt-config shell proxy Acquire::http::Proxy)"
    [ -z "$proxy" ] || options+=(--aptopt="Acquire::http::Proxy \"$proxy\"")
    # shellcheck disable=SC2086
    include=$(printf '%s,' $suite_packages)
    rm -rf "$2.new"
    mmdebstrap --mode=root --variant=minbase --include="${include%,}" "${options[@]}" \
        --aptopt='Acquire::http::Timeout "20"' --aptopt='Acquire::Languages "none"' \
        --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --format=directory "$1" "$2.new" \
        "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $1 main" && mv "$2.new" "$2"
}

# suite_root SUITE: makes the root unless it is there, prints its path. Returns 77, and says why on
# stderr, where it cannot be had; for an hour after such a failure nobody tries again.
suite_root() {
    local path failure began=$EPOCHREALTIME
    path=$(suite_root_path "$1") failure=$path.failed
    mkdir -p "$suite_roots"
    exec 8>"$path.lock"
    flock 8
    if [ ! -d "$path" ] && [ -z "$(find "$failure" -mmin -60 2>/dev/null)" ]; then
        echo "dev: making a root of Debian's suite $1" >&2
        if (suite_root_make "$1" "$path") >"$path.log" 2>&1; then
            rm -f "$failure"
            echo "dev: $path is made after $(elapsed "$began") s" >&2
        else
            grep -E '^(E|Err)' "$path.log" >"$failure" || tail -n 3 "$path.log" >"$failure"
            rm -rf "$path.new"
        fi
    fi
    exec 8>&-
    if [ ! -d "$path" ]; then
        echo "no root of Debian's suite $1 can be had: $(tr '\n' ' ' <"$failure")" >&2
        return 77
    fi
    echo "$path"
}

# suite_libraries LAYER ROOT: what the project's programs were linked with here and the root lacks goes
# into a folder of the layer that the loader's configuration names; init.sh runs ldconfig. The C library
# and libsystemd are the root's own; those that the layer has in folders of its own are found there.
suite_libraries() {
    local folder=$1/usr/lib/checkpointd-test-libraries system soname sonames pending own
    system=/usr/lib/$(gcc -print-multiarch)
    mkdir -p "$folder" "$1/etc/ld.so.conf.d"
    echo "${folder#"$1"}" >"$1/etc/ld.so.conf.d/zz-checkpointd-test.conf"
    mapfile -t pending < <(find "$1/usr" -type f -perm -100)
    own=$(find "$1/usr" -name '*.so*' -printf '%f\n')
    while [ ${#pending[@]} -gt 0 ]; do
        mapfile -t sonames < <(objdump -p "${pending[@]}" 2>/dev/null | awk '$1 == "NEEDED" { print $2 }')
        pending=()
        for soname in "${sonames[@]}"; do
            [ ! -e "$folder/$soname" ] && [ ! -e "$2$system/$soname" ] || continue
            ! grep -qxF "$soname" <<<"$own" || continue
            cp -L "$system/$soname" "$folder/"
            pending+=("$folder/$soname")
        done
    done
}
