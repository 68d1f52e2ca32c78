#!/bin/sh
# Usage: run.sh PYTHON [PYTEST ARGUMENT …]
# Runs the tests: as root directly, otherwise in a user namespace of their own where the kernel lets us make one.
set -eu
python=$1
shift
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
sh tests/install-programs.sh ip:iproute2 ping:iputils-ping setpriv:util-linux ethtool iperf3 tcpdump
if [ "$(id -u)" = 0 ]; then
    exec "$python" -m pytest "$@"
fi
if unshare -Urnm true 2>/dev/null; then
    echo '== no root: running in a user namespace (unshare -Urnm)'
    # shellcheck disable=SC2016 # expanded inside
    exec unshare -Urnm sh -c 'mount -t tmpfs tmpfs /run && exec "$@"' sh "$python" -m pytest "$@"
fi
echo '== no root and no user namespaces: tests that need a TUN/TAP driver are skipped'
exec "$python" -m pytest "$@"
