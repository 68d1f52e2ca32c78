#!/bin/sh
# Usage: install-programs.sh PROGRAM[:PACKAGE] …
# Makes sure that each program is there, from its Debian package where it is missing. A path stands for a file.
set -eu
PATH=$PATH:/usr/sbin:/sbin
missing=
for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || [ -f "${pair%%:*}" ] || missing="$missing ${pair##*:}"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "missing:$missing. Install these packages, or run as root on Debian." >&2
    exit 1
fi
echo "== installing Debian packages:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # one word a package
apt-get install -y -qq --no-install-recommends $missing >/dev/null
