#!/bin/sh
# Usage: sanitize.sh PYTHON [SECONDS]
# Checks the C sources: no compiler warnings for three processors; address and undefined-behaviour sanitizers with
# generated input, for SECONDS, and with the tests of the extension; the same results on a big-endian machine.
set -eu
cd "$(dirname "$0")/../.."
python=$PWD/$1 # it is also called from another folder
case $1 in /*) python=$1 ;; esac
seconds=${2-20}
sh tests/install-programs.sh cc:build-essential clang qemu-s390x:qemu-user \
    aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu /usr/aarch64-linux-gnu/include/stdlib.h:libc6-dev-arm64-cross \
    s390x-linux-gnu-gcc:gcc-s390x-linux-gnu /usr/s390x-linux-gnu/include/stdlib.h:libc6-dev-s390x-cross

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
harness='tests/native/harness.c native/merge.c native/packet.c native/segment.c'
headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
warnings='-std=c11 -Wall -Wextra -Wconversion -Wshadow -Werror'

# shellcheck disable=SC2086 # one word for each option
for compiler in gcc clang aarch64-linux-gnu-gcc s390x-linux-gnu-gcc; do
    echo "== $compiler: no warning"
    for file in tests/native/harness.c native/*.c; do
        "$compiler" $warnings -O2 -fPIC -isystem "$headers" -DPy_LIMITED_API=0x030B0000 '-DSOURCES=""' \
            -c "$file" -o "$work/object"
    done
done

# shellcheck disable=SC2086
gcc -std=c11 -O2 $harness -o "$work/plain"
# shellcheck disable=SC2086
s390x-linux-gnu-gcc -std=c11 -O2 -static $harness -o "$work/big-endian"
for seed in 1 2 3; do
    "$work/plain" "$seed" 2000 >"$work/expected"
    qemu-s390x "$work/big-endian" "$seed" 2000 >"$work/found"
    cmp "$work/expected" "$work/found"
    echo "== s390x, seed $seed, the same: $(cat "$work/found")"
done

# shellcheck disable=SC2086
gcc -std=c11 -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all $harness -o "$work/sanitized"
seed=$(date +%s)
end=$((seed + seconds))
while [ "$(date +%s)" -lt "$end" ]; do
    seed=$((seed + 1))
    "$work/sanitized" "$seed" 1000 >"$work/found" || {
        echo "sanitize: with seed $seed" >&2
        exit 1
    }
    echo "== sanitized, seed $seed: $(cat "$work/found")"
done

echo '== the tests of the extension, sanitized'
cp -R aiotuntap native tests setup.py pyproject.toml MANIFEST.in README.md LICENSE "$work"
rm -f "$work"/aiotuntap/_native*.so
cd "$work"
# LeakSanitizer would report all memory that the interpreter keeps until it ends. A test checks the memory in use instead.
options='detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=1'
CC=gcc CFLAGS='-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer' \
    AIOTUNTAP_EXTENSION=1 "$python" -m pip --disable-pip-version-check install --quiet --no-deps --target site .
mv site/aiotuntap/_native*.so aiotuntap
rm -r site
# Python's own allocator would hide reads and writes next to an object.
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" ASAN_OPTIONS=$options \
    PYTHONMALLOC=malloc PYTHONPATH=$work AIOTUNTAP_EXTENSION=1 \
    "$python" -m pytest -q -p no:cacheprovider --timeout 300 tests/test_native.py
