#!/bin/sh
# Usage: machine.sh arm64|s390x PYTHON [PYTEST ARGUMENT …]
# Runs the tests of pure code, all but tests/kernel, with Debian 12's Python of another architecture under qemu-user.
# PYTHON is that of the virtual environment, whose packages are used. The other Python is kept in ~/.cache/aiotuntap
# (XDG_CACHE_HOME); delete it to get a newer one.
set -eu
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=tests/machines/debian.sh
. "$here/debian.sh"
machine=$1 python=$2
shift 2
case $machine in
    arm64) platform=aarch64 ;;
    *) platform=$machine ;;
esac
sh "$here/../install-programs.sh" "qemu-$platform-static:qemu-user-static" ip:iproute2

root=$cache/debian-$machine
if [ ! -e "$root/ready" ]; then
    echo "== getting Python for $machine from Debian"
    rm -rf "$root"
    (
        use_debian bookworm "$machine"
        unpack_with_dependencies "$root" python3.11
    )
    touch "$root/ready"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" "$here/packages.py" "$work/packages" "$platform"
# As sys.executable it is what tests start again.
cat >"$work/python" <<EOF
#!/bin/sh
export PYTHONHOME=$root/usr PYTHONPATH=$PWD:$work/packages PYTHONDONTWRITEBYTECODE=1
exec qemu-$platform-static -L $root -0 $work/python $root/usr/bin/python3.11 "\$@"
EOF
chmod +x "$work/python"
echo "== the tests of pure code on $("$work/python" -c 'import os, sys; u = os.uname(); print(u.machine, sys.byteorder, "endian, Python", sys.version.split()[0])')"
[ -d "$work/packages/uvloop" ] || export AIOTUNTAP_TEST_LOOPS=asyncio
HYPOTHESIS_STORAGE_DIRECTORY=$work/hypothesis \
    "$work/python" -m pytest -p no:cacheprovider --ignore=tests/kernel "$@"
