#!/bin/sh
# Usage: run.sh PYTHON [SECONDS [CASES]]
# Coverage-guided fuzzing of the C sources under sanitizers for so many seconds (60), and so many cases (20000) for each
# parser in Python and against the kernel. What crashes the C sources is left in tests/fuzz/crashes; make it a test.
# With KEEP=1, what covers something new is added to the corpus, which is kept small.
set -eu
cd "$(dirname "$0")/../.."
python=$1
seconds=${2-60}
cases=${3-20000}
sh tests/install-programs.sh clang ip:iproute2
sh tests/install-programs.sh "$(clang -print-runtime-dir)/libclang_rt.fuzzer-$(uname -m).a:libclang-rt-dev"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p tests/fuzz/crashes "$work/corpus"
sources='native/merge.c native/packet.c native/segment.c'
# shellcheck disable=SC2086 # one word a file
clang -std=c11 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Wno-unused-function \
    tests/fuzz/target.c $sources -o "$work/target"
"$python" -m tests.fuzz.seeds "$work/seeds"
echo "== the C sources, for $seconds s"
"$work/target" -max_total_time="$seconds" -max_len=8192 -timeout=10 -print_final_stats=1 -verbosity=0 \
    -artifact_prefix=tests/fuzz/crashes/ "$work/corpus" tests/fuzz/corpus "$work/seeds"
if [ -n "${KEEP-}" ]; then
    # Only what covers something that the rest does not, and only small files.
    mkdir "$work/small"
    "$work/target" -merge=1 -max_len=512 -verbosity=0 "$work/small" tests/fuzz/corpus "$work/corpus" "$work/seeds" \
        2>/dev/null
    rm -f tests/fuzz/corpus/*
    cp "$work"/small/* tests/fuzz/corpus
    echo "== $(find tests/fuzz/corpus -type f | wc -l) files in the corpus"
fi
rmdir tests/fuzz/crashes 2>/dev/null || true

echo "== each parser in Python, $cases cases"
"$python" -m tests.fuzz.parsers --cases "$cases"
if [ "$(id -u)" = 0 ]; then
    echo "== the kernel as the judge, $cases cases"
    "$python" -m tests.fuzz.judge --cases "$cases"
fi
