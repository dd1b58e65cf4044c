#!/bin/busybox sh
# The guest's first process, run from the initrd with busybox alone: kernel modules, file systems, then the guest's
# real root.
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
fail() { echo "rdma-vm: guest: $*"; $b reboot -f; }
argument() { $b sed -n "s/.*\\b$1=\\([^ ]*\\).*/\\1/p" /proc/cmdline; }

# A trial boot, which finds out whether KVM works here.
if [ -n "$(argument rdma_vm_probe)" ]; then echo rdma-vm-probe-ok; $b reboot -f; fi

while read -r module; do
    # SoftRoCE checksums every packet. Emulated, the carry-less multiply behind crc32_pclmul is slower than a table.
    [ "$module" = crc32-pclmul.ko ] && [ "$(argument rdma_vm_accel)" = tcg ] && continue
    $b insmod "/modules/$module" || echo "rdma-vm: guest: insmod $module failed"
done </modules/order

# The host's root and the tools, both read-only, below a throw-away layer.
shared=trans=virtio,version=9p2000.L,msize=512000
$b mount -t 9p -o $shared,ro,cache=loose hostroot /lower || fail "cannot mount the host's root"
$b mount -t 9p -o $shared,ro,cache=loose tools /tools || fail "cannot mount the tools"
$b mount -t tmpfs -o size=75% upper /upper
$b mkdir /upper/files /upper/work
$b mount -t overlay -o lowerdir=/tools:/lower,upperdir=/upper/files,workdir=/upper/work root /guest ||
    fail "cannot mount the overlay"
cd /guest
$b mkdir -p dev proc sys run tmp
$b mount -t tmpfs run run
$b mkdir -p run/rdma-vm/job run/lock
$b cp /bin/busybox /stage.sh run/rdma-vm/
$b mount -t 9p -o $shared,cache=none job run/rdma-vm/job || fail "cannot mount the job"
number=0
while read -r folder; do
    { $b mkdir -p "/guest$folder" && $b mount -t 9p -o $shared,cache=mmap rw$number "/guest$folder"; } ||
        fail "cannot mount $folder"
    number=$((number + 1))
done </guest/run/rdma-vm/job/rw
$b mount --move /dev dev
$b mount --move /proc proc
$b mount --move /sys sys
# The host's shell, because busybox's prefers its own `ip` to iproute2's.
exec $b switch_root /guest /bin/sh /run/rdma-vm/stage.sh
