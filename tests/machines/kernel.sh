#!/bin/sh
# Usage: kernel.sh 5.10|6.1|6.12 COMMAND …
# Runs a shell command on this kernel of Debian, as root, in this directory and with this machine's files. They are
# read-only, except for /run and /dev/shm (TMPDIR). Prints the output of the command and exits with its status, or
# with 125 if the command did not run to its end. 5.10 and 6.1 run as user-mode Linux, which needs no hardware support and
# is about half as fast as the machine. Debian has no user-mode Linux for other kernels: they run under QEMU, ten times
# slower. The kernels are stored in ~/.cache/aiotuntap (XDG_CACHE_HOME); delete it to get newer ones.
set -eu
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=tests/machines/debian.sh
. "$here/debian.sh"
version=$1
shift
PATH=$PATH:/usr/sbin:/sbin
if [ "$(id -u)" != 0 ]; then
    echo 'run this as root: the other kernel uses the root directory of this machine' >&2
    exit 1
fi
case $version in
    5.10 | 6.1) kind=uml programs='' ;;
    *) kind=qemu programs='qemu-system-x86_64:qemu-system-x86 cpio' ;;
esac
# shellcheck disable=SC2086 # words
sh "$here/../install-programs.sh" depmod:kmod setsid:util-linux $programs

# -- the kernel and its modules ----------------------------------------------------------------------------------------

kernel=$cache/linux-$version
if [ ! -e "$kernel/ready" ]; then
    echo "== getting Linux $version from Debian"
    rm -rf "$kernel"
    if [ "$version" = 5.10 ]; then
        use_debian bullseye amd64
    else
        use_debian bookworm amd64
    fi
    if [ $kind = uml ]; then
        unpack "$kernel" user-mode-linux
        mkdir -p "$kernel/lib"
        mv "$kernel/usr/lib/uml/modules" "$kernel/lib/"
    else
        image=$(apt-cache pkgnames "linux-image-$version." | grep '[0-9]-amd64$' | sort -V | tail -n 1)
        unpack "$kernel" busybox-static "${image:?Debian 12 has no Linux $version}"
    fi
    depmod -b "$kernel" "$(ls "$kernel/lib/modules")"
    touch "$kernel/ready"
fi
release=$(ls "$kernel/lib/modules")

# -- the guest ---------------------------------------------------------------------------------------------------------

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "$*" >"$work/command"
values="quiet AIOTUNTAP_KERNEL=$kernel AIOTUNTAP_WORK=$work AIOTUNTAP_DIRECTORY=$PWD"

# An initramfs with busybox and the modules that are needed to mount the host's files over 9p.
make_initramfs() {
    mkdir -p "$work/i/modules" "$work/i/root"
    cp "$kernel/bin/busybox" "$work/i/"
    number=100
    for module in virtio_pci 9pnet_virtio 9p; do
        modprobe -d "$kernel" -S "$release" --show-depends $module
    done | while read -r how file _; do
        [ "$how" = insmod ] || continue
        number=$((number + 1)) # in the order of their dependencies
        cp "$file" "$work/i/modules/$number-${file##*/}"
    done
    find "$work/i/modules" -name '*.xz' -exec xz -d {} +
    cat >"$work/i/init" <<EOF
#!/busybox sh
for module in /modules/*; do /busybox insmod \$module; done
/busybox mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000 host /root
exec /busybox switch_root /root $here/init.sh
EOF
    chmod +x "$work/i/init"
    (cd "$work/i" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/initramfs"
}

if [ $kind = uml ]; then
    # shellcheck disable=SC2086 # words
    set -- env -u TMPDIR "$kernel/usr/bin/linux.uml" mem=2G uml_dir="$work/" \
        root=/dev/root rootfstype=hostfs rootflags=/ ro con=null con0=null,fd:1 con1=null $values init="$here/init.sh"
else
    make_initramfs
    set -- qemu-system-x86_64 -M q35 -accel tcg,tb-size=512 -cpu max -m 2G \
        -nodefaults -no-reboot -display none -serial stdio \
        -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
        -kernel "$kernel/boot/vmlinuz-$release" -initrd "$work/initramfs" \
        -append "console=ttyS0 panic=-1 mitigations=off $values"
fi
# The guest's console has the command's output between two marks. If the first mark is missing, all output is shown.
timeout --foreground -k 5 "${GUEST_TIMEOUT:-3600}" "$@" </dev/null 2>&1 | tee "$work/console" |
    sed -un 's/\r$//; /^@@begin/,/^@@exit=/{s/^@@begin/==/; /^@@exit/!p}' || :
status=$(sed -n 's/^@@exit=\([0-9]*\).*/\1/p' "$work/console")
if [ -z "$status" ]; then
    tail -n 30 "$work/console" >&2
    echo "Linux $version did not run the command to its end" >&2
    exit 125
fi
exit "$status"
