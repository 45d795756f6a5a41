#!/bin/busybox sh
# The first process of the virtual machine. The root of the machine outside is its root, read-only by 9p, with a layer of
# memory on top: what is written is gone with it. `job` says what to run, `modules` where the modules of this kernel are.
bb=/bin/busybox

$bb mkdir -p /proc /sys /dev /below /above /root
$bb mount -t devtmpfs none /dev
$bb mount -t proc none /proc
$bb mount -t sysfs none /sys
# The kernel has the first line to itself.
exec </dev/ttyS1 >/dev/ttyS1 2>&1
# Lines end as they are written.
$bb stty raw -echo

end() {
    echo "vm: $1"
    $bb poweroff -f
}

must() {
    "$@" || end "broken: $*"
}

for module in $($bb cat /early); do
    must $bb insmod "/$module"
done
must $bb mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=524288,cache=loose,nodevmap outside /below
must $bb mount -t tmpfs none /above
$bb mkdir /above/upper /above/work
must $bb mount -t overlay -o lowerdir=/below,upperdir=/above/upper,workdir=/above/work none /root

$bb mount --move /dev /root/dev
for folder in dev/pts dev/shm proc sys run; do
    $bb mkdir -p "/root/$folder"
done
must $bb mount -t proc none /root/proc
must $bb mount -t sysfs none /root/sys
must $bb mount -t cgroup2 none /root/sys/fs/cgroup
must $bb mount -t bpf none /root/sys/fs/bpf
must $bb mount -t tmpfs none /root/run
$bb mkdir /root/run/lock
$bb mount -t tmpfs none /root/dev/shm
$bb mount -t devpts none /root/dev/pts
$bb ln -s /proc/self/fd /root/dev/fd
$bb ip link set lo up
$bb hostname vm

# The kernel asks for the modules that it wants by /sbin/modprobe, of this root and not of the one below.
release=$($bb uname -r)
$bb mkdir -p /sbin "/lib/modules/$release" "/root/lib/modules/$release"
$bb ln -s $bb /sbin/modprobe
for root in '' /root; do
    must $bb mount -o bind "/root$($bb cat /modules)" "$root/lib/modules/$release"
done

# What systemd allows its services; the kernel itself would allow 4,096 open files.
ulimit -n 524288
$bb cp /job /root/run/job
echo "vm: up $release"
$bb chroot /root /bin/sh /run/job
end "exit $?"
