# Installs the Debian packages named as arguments. Runs as root.
#
# Several of them bring a service. The tests start their own copies in network namespaces, so on
# this machine none may start: not now, and not at the next boot.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C

enabled() {
    { ls /etc/systemd/system/*.wants/ /etc/rc2.d/ 2>/dev/null || :; } |
        sed -n 's/^S[0-9][0-9]\([a-z].*\)$/\1.service/; /\.service$/p' | sort -u
}

policy=/usr/sbin/policy-rc.d
if [ -e "$policy" ]; then
    echo "  $policy is there already and decides whether services start"
else
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    echo "  $policy keeps services from starting until the packages are in"
fi
enabled >"${TMPDIR:-/tmp}/enabled.$$"

run() {
    echo "  # $*"
    "$@"
}
run apt-get update -qq -o DPkg::Lock::Timeout=300
run apt-get install -qq --no-install-recommends -o DPkg::Lock::Timeout=300 \
    -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confold "$@" >/dev/null

for unit in $(enabled | comm -13 "${TMPDIR:-/tmp}/enabled.$$" -); do
    echo "  $unit came along and is disabled"
    # It wants to be told which package's script calls it.
    DPKG_MAINTSCRIPT_PACKAGE=lab deb-systemd-helper disable "$unit" >/dev/null || :
    name=${unit%.service}
    if [ -e "/etc/init.d/$name" ]; then
        SYSTEMCTL_SKIP_SYSV=1 update-rc.d "$name" disable >/dev/null 2>&1 || :
    fi
done
rm -f "${TMPDIR:-/tmp}/enabled.$$"
