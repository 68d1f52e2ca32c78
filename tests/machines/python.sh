#!/bin/sh
# Usage: python.sh 3.14
# Prints the path of this Python from Debian's next release, for "make test PYTHON=…". It is not installed, but unpacked
# into ~/.cache/aiotuntap (XDG_CACHE_HOME); delete it to get a newer one.
set -eu
# shellcheck source=tests/machines/debian.sh
. "$(dirname "$(readlink -f "$0")")/debian.sh"
root=$cache/python-$1
python=$root/usr/bin/python$1
if [ ! -e "$root/ready" ]; then
    rm -rf "$root"
    use_debian forky amd64
    unpack_with_dependencies "$root" "python$1" "python$1-venv"
    sed -i "s,/usr/share/python-wheels,$root&," "$root/usr/lib/python$1"/_sysconfigdata_*.py # for its pip
    # It is started by the C library that it was built with, and finds its own files relative to its path.
    mv "$python" "$python.real"
    cat >"$python" <<EOF
#!/bin/sh
exec $root/usr/lib64/ld-linux-x86-64.so.2 --library-path $root/usr/lib/x86_64-linux-gnu --argv0 "\$0" $python.real "\$@"
EOF
    chmod +x "$python"
    touch "$root/ready"
fi
echo "$python"
