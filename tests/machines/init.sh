#!/bin/sh
# The first process of a guest that kernel.sh boots. / is the host's, read-only; AIOTUNTAP_* come from the kernel's command
# line. Runs the command as root between two lines that kernel.sh looks for, and turns the guest off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TMPDIR=/dev/shm NO_COLOR=1
# The folders of the sources are read-only.
export PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=/dev/shm/hypothesis
# A guest is slow, especially on a busy host: the deadline only ends a test that hangs. The debug mode of asyncio reads
# source files for each future, which would take half of the time.
export PYTEST_ADDOPTS='-p no:cacheprovider --timeout=400 -o asyncio_debug=false'
for each in proc:/proc sysfs:/sys devtmpfs:/dev tmpfs:/run tmpfs:/dev/shm devpts:/dev/pts; do
    mkdir -p "${each#*:}"
    mount -t "${each%:*}" none "${each#*:}"
done 2>/dev/null
chmod 1777 /dev/shm
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
for each in 0:stdin 1:stdout 2:stderr; do
    [ -e "/dev/${each#*:}" ] || ln -s "/proc/self/fd/${each%:*}" "/dev/${each#*:}"
done
# The kernel loads modules that a test needs (bridge, veth, vxlan) from its own package.
printf '#!/bin/sh\nexec modprobe -d %s "$@"\n' "$AIOTUNTAP_KERNEL" >/run/modprobe
chmod +x /run/modprobe
echo /run/modprobe >/proc/sys/kernel/modprobe
/run/modprobe -qa tun ipv6
cd "$AIOTUNTAP_DIRECTORY" || exit
echo "@@begin Linux $(uname -r), up in $(cut -d' ' -f1 /proc/uptime) s"
setsid -w sh "$AIOTUNTAP_WORK/command" </dev/null
echo "@@exit=$?"
echo o >/proc/sysrq-trigger
while :; do sleep 1; done
