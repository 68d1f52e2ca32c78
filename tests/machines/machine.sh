#!/bin/sh
# Usage: machine.sh arm64|s390x PYTHON [PYTEST ARGUMENT …]
# Runs all tests except tests/kernel, with Debian 12's Python of another architecture under qemu-user. PYTHON is the one
# of the virtual environment, whose packages are used. The other Python is stored in ~/.cache/aiotuntap (XDG_CACHE_HOME);
# delete it to get a newer one.
set -eu
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=tests/machines/debian.sh
. "$here/debian.sh"
machine=$1
python=$(readlink -f "$(dirname "$2")")/${2##*/}
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
# A copy of the sources, without files that are compiled for this machine.
mkdir "$work/tree"
(cd "$here/../.." && tar -c --exclude='*.so' --exclude=build --exclude=_build -- *) | tar -x -C "$work/tree"
if [ -e "$work/tree/setup.py" ]; then
    sh "$here/../install-programs.sh" "$platform-linux-gnu-gcc:gcc-$platform-linux-gnu"
    echo "== compiling the extension for $machine"
    (
        cd "$work/tree"
        "$python" -m pip --disable-pip-version-check --quiet install --target "$work/setuptools" 'setuptools>=77'
        export CC="$platform-linux-gnu-gcc" LDSHARED="$platform-linux-gnu-gcc -shared"
        AIOTUNTAP_EXTENSION=1 PYTHONPATH=$work/setuptools "$python" setup.py -q build_ext --inplace
    )
fi
# Tests start it again as sys.executable.
cat >"$work/python" <<EOF
#!/bin/sh
export PYTHONHOME=$root/usr PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH="\${PYTHONPATH:+\$PYTHONPATH:}$work/tree:$work/packages" # a test puts its own in front
exec qemu-$platform-static -L $root -0 $work/python $root/usr/bin/python3.11 "\$@"
EOF
chmod +x "$work/python"
about='import os, sys; print(os.uname().machine, sys.byteorder, "endian, Python", sys.version.split()[0])'
echo "== the tests without the kernel on $("$work/python" -c "$about")"
[ -d "$work/packages/uvloop" ] || export AIOTUNTAP_TEST_LOOPS=asyncio
# The ciphers of examples/tunnel.py and examples/wireguard, whose parsers are fuzzed as well.
[ -d "$work/packages/cryptography" ] ||
    set -- --ignore=tests/test_tunnel_channel.py --ignore=tests/wireguard --ignore=tests/test_fuzz.py "$@"
# Drawing charts takes a C++ library that is not there, and is no matter of the processor.
set -- --ignore=tests/test_charts.py --ignore=tests/test_benchmarks.py "$@"
# qemu-user passes on the ancillary data of UDP as they are, and the kernel below has the other byte order.
[ "$machine" != s390x ] || set -- --deselect=tests/test_native.py::test_no_datagram_is_lost_when_memory_runs_out "$@"
cd "$work/tree"
# An emulated machine is slow, especially on a busy host: the deadline only ends a test that hangs.
HYPOTHESIS_STORAGE_DIRECTORY=$work/hypothesis \
    "$work/python" -m pytest -p no:cacheprovider --timeout=400 --ignore=tests/kernel "$@"
