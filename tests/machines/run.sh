#!/bin/sh
# Usage: run.sh kernels|machines PYTHON "NAME …" [PYTEST ARGUMENT …]
# Runs tests on each kernel or machine, one after the other, and prints how long each took (see kernel.sh and machine.sh):
# tests/kernel on another kernel, all other tests on another machine. On a kernel, only the engine in C is tested: the
# system calls of both engines are the same, and a guest is slow.
set -eu
here=$(dirname "$(readlink -f "$0")")
what=$1 python=$2 names=$3
shift 3
cd "$here/../.."
# Installs the programs that the tests call, because a guest cannot, and compiles the tests.
sh tests/run.sh "$python" --collect-only -qq tests/kernel >/dev/null
trap 'trap - INT TERM; kill 0' INT TERM # the guests, too

# Skipped in a guest, because they are too slow there: WireGuard, labs with virtual machines, and the blocks of the pages,
# each of which is a process of its own. The other tests cover what they use.
left_out='--ignore=tests/kernel/test_wireguard.py --ignore=tests/kernel/test_wireguard_peers.py'
left_out="$left_out --ignore=tests/kernel/test_switch_stations.py --ignore=tests/kernel/test_machine.py"
left_out="$left_out --ignore=tests/kernel/test_pages.py"

# A guest has one processor and often waits, so there are three guests for two processors of this machine, four at most, and
# they share the tests. The tests for the engine in Python are removed first, so that all guests get the same number of
# tests; of those for both loops, one remains, by turns (conftest.py).
on_kernel() {
    version=$1
    shift
    sh "$here/kernel.sh" "$version" true # downloads the kernel if necessary
    guests=$((($(nproc) * 3 + 1) / 2))
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
