# Makes a Debian in the folder $1 the root of namespaces of its own and becomes its systemd. The network stays that of
# the caller; $2 is a cgroup2 folder for it.
set -eu
root=$1
echo $$ >"$2/cgroup.procs"

exec unshare --cgroup --pid --mount --uts --ipc --fork --kill-child sh -eu -c '
root=$1
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount --bind /sys/fs/bpf "$root/sys/fs/bpf"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm" "$root/dev/pts" "$root/mnt/old"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
cd "$root"
pivot_root . mnt/old
umount -l mnt/old
rmdir mnt/old
# The variable tells systemd to leave the machine alone.
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=console --show-status=no
' guest "$root"
