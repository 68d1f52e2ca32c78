#!/bin/sh
# Usage: run.sh PYTHON [PYTEST ARGUMENT …]
# Runs the tests: as root directly, otherwise in a user namespace of their own where the kernel lets us make one.
# Root can install a compiler, so both engines are tested then.
# Without arguments for pytest these are all, on several processes at once (most tests wait more than they compute); the
# ones that measure time come after the others.
set -eu
python=$1
shift
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
# Each worker, and each program that a test starts, would compile every module again.
unset PYTHONDONTWRITEBYTECODE
sh tests/install-programs.sh ip:iproute2 ping:iputils-ping jq setpriv:util-linux ethtool iperf3 tcpdump tshark \
    wg:wireguard-tools wireguard-go nft:nftables sysctl:procps dnsmasq:dnsmasq-base udhcpc nsenter:util-linux \
    qemu-system-x86_64:qemu-system-x86 /usr/lib/ipxe/qemu/pxe-e1000.rom:ipxe-qemu \
    systemd-analyze:systemd passt
if "$python" -c 'import aiotuntap._native' 2>/dev/null; then
    export AIOTUNTAP_EXTENSION=1
elif [ "$(id -u)" = 0 ]; then
    echo 'the C extension was not compiled, and both engines are to be tested: see above' >&2
    exit 1
else
    echo '== NO C EXTENSION: ONLY THE ENGINE IN PYTHON IS TESTED'
fi
if [ $# = 0 ]; then
    workers=$(($(nproc) * 3))
    [ "$workers" -le 8 ] || workers=8
    alone=$(grep -rl --include='test_*.py' mark.alone tests | tr '\n' ' ')
    set -- sh -c "'$python' -m pytest -q -n $workers --dist worksteal -m 'not alone' && exec '$python' -m pytest -q -m alone $alone"
else
    set -- "$python" -m pytest "$@"
fi
# Whoever runs this in the background may have SIGINT ignored, which programs inherit, and the tests send it.
set -- env --default-signal=INT "$@"
if [ "$(id -u)" = 0 ]; then
    exec "$@"
fi
if unshare -Urnm true 2>/dev/null; then
    echo '== no root: running in a user namespace (unshare -Urnm)'
    # shellcheck disable=SC2016 # expanded inside
    exec unshare -Urnm sh -c 'mount -t tmpfs tmpfs /run && exec "$@"' sh "$@"
fi
echo '== no root and no user namespaces: tests that need a TUN/TAP driver are skipped'
exec "$@"
