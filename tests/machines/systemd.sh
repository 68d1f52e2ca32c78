#!/bin/sh
# Usage: systemd.sh PYTHON
# Runs examples/kept.service under a systemd that boots in a container, as root: pinged while it is restarted, killed,
# restarted by systemd, and stopped. The container is a copy of this machine that exists in memory only; nothing that
# systemd changes or removes when it boots reaches the machine.
set -eu
here=$(dirname "$(readlink -f "$0")")
PATH=$PATH:/usr/sbin:/sbin
if [ $# = 1 ]; then
    sh "$here/../install-programs.sh" systemd-nspawn:systemd-container ip:iproute2 ping:iputils-ping
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    unshare --mount sh "$0" "$1" "$work" >"$work/console" 2>&1 || status=$?
    if ! grep -q '^all is well' "$work/told" 2>/dev/null; then
        cat "$work/console" "$work/told" 2>/dev/null
        echo "systemd: failed with status ${status-0}" >&2
        exit 1
    fi
    cat "$work/told"
    exit
fi

# -- in a mount namespace ----------------------------------------------------------------------------------------------
python=$1 work=$2
mount --make-rprivate /
mkdir "$work/memory"
mount -t tmpfs tmpfs "$work/memory"
root=$work/memory/root
mkdir "$root" "$work/memory/changes" "$work/memory/spare"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/memory/changes,workdir=$work/memory/spare" "$root"

# The service runs as a user of its own, who cannot read the home of another.
mkdir "$root/opt/kept"
cp -r "$here/../../aiotuntap" "$here/../../examples/kept.py" "$here/../../examples/echo.py" "$root/opt/kept"
cp -r "$("$python" -c 'import os, pyroute2; print(os.path.dirname(pyroute2.__file__))')" "$root/opt/kept"
chmod -R a+rX "$root/opt/kept"
cp "$here/../../examples/kept.service" "$root/etc/systemd/system"

cat >"$root/etc/systemd/system/trial.service" <<'UNIT'
[Service]
Type=oneshot
ExecStart=/bin/sh /opt/kept/trial.sh
StandardOutput=file:/told
StandardError=inherit
ExecStopPost=/bin/systemctl poweroff --force
UNIT
printf '[Unit]\nRequires=basic.target trial.service\nAfter=basic.target\nAllowIsolate=yes\n' \
    >"$root/etc/systemd/system/trial.target"

cat >"$root/opt/kept/trial.sh" <<'TRIAL'
set -eu
number() {
    ip -o link show kept0 | cut -d: -f1
}
ip link set lo up
systemctl start kept.service
systemctl show -p NFileDescriptorStore kept.service | grep -x NFileDescriptorStore=2
before=$(number)
ping -n -c 100 -i 0.1 10.77.0.2 >/opt/kept/ping &
sleep 0.5
systemctl restart kept.service
wait $!
grep '100 received, 0% packet loss' /opt/kept/ping
[ "$(number)" = "$before" ]
echo 'restarted: the same interface'
systemctl kill -s KILL kept.service
tries=0
until [ "$(systemctl show -p NRestarts --value kept.service)" = 1 ] && systemctl -q is-active kept.service; do
    [ $((tries += 1)) -lt 100 ]
    sleep 0.1
done
ping -n -c 2 -i 0.1 -W 10 10.77.0.2 | grep '2 received'
[ "$(number)" = "$before" ]
echo 'killed: the same interface'
systemctl stop kept.service
tries=0
while ip link show kept0 2>/dev/null; do
    [ $((tries += 1)) -lt 100 ]
    sleep 0.1
done
echo 'stopped: no interface'
echo 'all is well'
TRIAL

status=0
timeout -k 5 120 systemd-nspawn --quiet --directory="$root" --machine="kept$$" --register=no --keep-unit --console=pipe \
    --private-network --bind=/dev/net/tun --boot systemd.unit=trial.target </dev/null || status=$?
cp "$root/told" "$work/told" || :
exit "$status"
