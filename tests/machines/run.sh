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
# Installs the programs that the tests call, which a guest cannot.
sh tests/run.sh "$python" --version
failed=''
for name in $names; do
    echo "== $name"
    start=$(date +%s)
    status=0
    case $what in
        kernels) sh "$here/kernel.sh" "$name" "sh tests/run.sh '$python' tests/kernel -q -k 'not Python' $*" || status=$? ;;
        machines) sh "$here/machine.sh" "$name" "$python" -q "$@" || status=$? ;;
    esac
    echo "== $name: status $status after $(($(date +%s) - start)) s"
    [ "$status" = 0 ] || failed="$failed $name"
done
if [ -n "$failed" ]; then
    echo "the tests fail on:$failed" >&2
    exit 1
fi
