#!/bin/sh
# Usage: run.sh kernels|machines PYTHON "NAME …" [PYTEST ARGUMENT …]
# Runs tests on each of these, one after the other, and says how long each took (see kernel.sh and machine.sh): those
# of tests/kernel on another kernel, all others on another machine. On a kernel, with the fast engine alone: the system
# calls are the same with both, and a guest is slow.
set -eu
here=$(dirname "$(readlink -f "$0")")
what=$1 python=$2 names=$3
shift 3
cd "$here/../.."
# Installs the programs that the tests call, which a guest cannot, and compiles the tests.
sh tests/run.sh "$python" --collect-only -qq tests/kernel >/dev/null
trap 'trap - INT TERM; kill 0' INT TERM # the guests, too

# Slow programs in a slow guest, which stand on what the other tests look at: WireGuard, and labs with virtual machines.
left_out='--ignore=tests/kernel/test_wireguard.py --ignore=tests/kernel/test_wireguard_peers.py'
left_out="$left_out --ignore=tests/kernel/test_switch_stations.py --ignore=tests/kernel/test_machine.py"

# A guest has one processor: as many guests as this machine has processors share the tests between them. The tests for
# the engine in Python are left out first, so that each gets as many of the others.
on_kernel() {
    version=$1
    shift
    sh "$here/kernel.sh" "$version" true # gets it, if it is not there
    guests=$(nproc)
    [ "$guests" -le 4 ] || guests=4
    pids=''
    for guest in $(seq "$guests"); do
        sh "$here/kernel.sh" "$version" \
            "AIOTUNTAP_TEST_SHARE=$guest/$guests sh tests/run.sh '$python' tests/kernel $left_out -q -k 'not Python' $*" &
        pids="$pids $!"
    done
    failed_guests=0
    for pid in $pids; do
        result=0
        wait "$pid" || result=$?
        # 5: pytest was given arguments that select nothing in these files.
        [ $result = 0 ] || { [ $result = 5 ] && [ $# -gt 0 ]; } || failed_guests=1
    done
    return $failed_guests
}

failed=''
for name in $names; do
    echo "== $name"
    start=$(date +%s)
    status=0
    case $what in
        kernels) on_kernel "$name" "$@" || status=$? ;;
        machines) sh "$here/machine.sh" "$name" "$python" -q "$@" || status=$? ;;
    esac
    echo "== $name: status $status after $(($(date +%s) - start)) s"
    [ "$status" = 0 ] || failed="$failed $name"
done
if [ -n "$failed" ]; then
    echo "the tests fail on:$failed" >&2
    exit 1
fi
