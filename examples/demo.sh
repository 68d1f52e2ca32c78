#!/bin/sh
# Usage: demo.sh PYTHON
# Starts echo.py in a new network namespace, first as TUN and then as TAP, and pings it over IPv4 and IPv6.
# Root uses a named network namespace. Other users use an unnamed one, inside a user namespace where they are root.
set -eu
PATH=$PATH:/usr/sbin:/sbin
here=$(cd "$(dirname "$0")" && pwd)
python=$1

fail() {
    echo "demo: $*" >&2
    exit 1
}

sh "$here/../tests/install-programs.sh" ip:iproute2 ping:iputils-ping

if [ "${AIOTUNTAP_DEMO_INSIDE-}" != yes ]; then
    [ -c /dev/net/tun ] || fail "/dev/net/tun does not exist. As root: 'modprobe tun', or
'mkdir -p /dev/net && mknod /dev/net/tun c 10 200'; for a container: docker run --device /dev/net/tun"
    [ -r /dev/net/tun ] && [ -w /dev/net/tun ] || fail "this user may not open /dev/net/tun. Run the demo as root, or allow
it: 'chmod 0666 /dev/net/tun' (the kernel still checks who may create an interface)"
    if [ "$(id -u)" != 0 ]; then
        unshare -Urn true 2>/dev/null || fail "this user may not create user namespaces. Run the demo as root, or
allow it: 'sysctl -w user.max_user_namespaces=10000 kernel.apparmor_restrict_unprivileged_userns=0'"
        echo "== Not root: the demo runs in a user namespace (unshare -Urn)."
        AIOTUNTAP_DEMO_INSIDE=yes exec unshare -Urn sh "$here/demo.sh" "$python"
    fi
fi

namespace='' inside='' responder=''
work=$(mktemp -d)
log=$work/log

cleanup() {
    status=$?
    trap - EXIT
    trap '' INT TERM
    if [ -n "$responder" ]; then
        kill "$responder" 2>/dev/null || :
        wait "$responder" || :
    fi
    [ -z "$namespace" ] || ip netns del "$namespace"
    rm -rf "$work"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ "${AIOTUNTAP_DEMO_INSIDE-}" != yes ]; then
    echo "== Creating the network namespace aiotuntap-demo-$$."
    ip netns add "aiotuntap-demo-$$" || fail "cannot create a network namespace: see the line above. For a
container: docker run --cap-add SYS_ADMIN --cap-add NET_ADMIN"
    namespace=aiotuntap-demo-$$
    inside="ip netns exec $namespace"
fi

# A child that a shell without job control starts with & ignores SIGINT. So it is stopped with SIGTERM.
start() {
    echo
    echo "== Starting: echo.py echo0 --mode $1 --queues 4"
    : >"$log"
    # shellcheck disable=SC2086 # zero or more words
    PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}" $inside "$python" "$here/echo.py" echo0 --mode "$1" --queues 4 \
        >"$log" 2>&1 &
    responder=$!
    tries=0
    until grep -q '^ready' "$log"; do
        kill -0 "$responder" 2>/dev/null && [ $((tries += 1)) -lt 100 ] || {
            cat "$log" >&2
            fail "the example did not start"
        }
        sleep 0.1
    done
    cat "$log"
    # An IPv6 address of a TAP interface is tentative for 1 to 2 s, while the kernel looks for duplicates.
    tries=0
    # shellcheck disable=SC2086
    while [ -n "$($inside ip -6 addr show dev echo0 tentative)" ]; do
        [ "$tries" != 0 ] || echo "== Waiting for duplicate address detection (IPv6)."
        [ $((tries += 1)) -lt 100 ] || fail "the IPv6 address of echo0 is still tentative after 10 s"
        sleep 0.1
    done
}

stop() {
    echo "== Stopping the example (SIGTERM). Frames of each queue:"
    kill "$responder"
    pid=$responder responder=
    wait "$pid" || {
        cat "$log" >&2
        fail "the example ended with an error"
    }
    grep '^queue' "$log"
}

pings() {
    for address in "$@"; do
        echo "== ping -c 3 $address"
        # shellcheck disable=SC2086
        if ! $inside ping -n -c 3 -i 0.2 -W 2 "$address" >"$work/ping" 2>&1; then
            cat "$work/ping" >&2
            fail "$address did not answer"
        fi
        grep 'time=' "$work/ping"
    done
}

start tun
pings 10.77.0.2 10.77.0.3 10.77.0.77 10.77.0.254 fd77::2 fd77::3 fd77::77 fd77::1234:5678
stop

start tap
pings 10.77.0.2 10.77.0.200 fd77::2 fd77::cafe
stop

echo
echo "== Every ping was answered."
