# The guest's first process on its real root: the network, the RDMA devices, the job, power off.
b=/run/rdma-vm/busybox
job=/run/rdma-vm/job
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
fail() { echo "rdma-vm: guest: $*"; echo 125 >$job/status; $b sync; $b reboot -f; $b sleep 9; }
. $job/conf # rdma, mtu
$b mkdir -p /dev/pts /dev/shm
$b mount -t devpts -o ptmxmode=666,mode=620 devpts /dev/pts
$b mount -t tmpfs shm /dev/shm
$b ln -sf /proc/self/fd /dev/fd
$b ln -sf /proc/self/fd/0 /dev/stdin
$b ln -sf /proc/self/fd/1 /dev/stdout
$b ln -sf /proc/self/fd/2 /dev/stderr
$b hostname rdma-vm
ulimit -l unlimited
ulimit -n 65536
ip link set lo up

# SoftRoCE of this kernel lives in the first network namespace only, so both ends of the link are in one namespace,
# where 10.77.0.1 to 10.77.0.2 would take the short cut through `lo`. The table `local` is therefore asked only for
# what arrives at its own end, and each address is routed out of the opposite end: every packet crosses the link.
# A looser rule would break connection managers, which check that a peer is reached through its own device.
ip link add va type veth peer name vb || fail "no veth"
for interface in all default va vb; do
    for setting in accept_local=1 rp_filter=0 arp_ignore=1 arp_announce=2; do
        echo ${setting#*=} >/proc/sys/net/ipv4/conf/$interface/${setting%=*} 2>/dev/null
    done
done
for interface in va vb; do ip link set $interface mtu $mtu up; done
ip addr add 10.77.0.1/32 dev va
ip addr add 10.77.0.2/32 dev vb
ip rule add pref 10 iif va to 10.77.0.1 lookup local
ip rule add pref 10 iif vb to 10.77.0.2 lookup local
ip rule add pref 11 to 10.77.0.0/24 lookup 77
ip route add 10.77.0.2 dev va src 10.77.0.1 table 77
ip route add 10.77.0.1 dev vb src 10.77.0.2 table 77
ip rule add pref 12 lookup local
ip rule del pref 0

# The GID that is made from an address appears a moment after the device.
await_gid() { # DEVICE ADDRESS
    wanted=$(printf '0000:0000:0000:0000:0000:ffff:%02x%02x:%02x%02x' $(echo $2 | $b tr . ' '))
    tries=0
    until $b grep -qx "$wanted" /sys/class/infiniband/$1/ports/1/gids/* 2>/dev/null; do
        tries=$((tries + 1))
        [ $tries -lt 50 ] || fail "$1 has no GID for $2"
        $b sleep 0.1
    done
}
export RDMA_VM=1 RDMA_VM_ADDRESS_A=10.77.0.1 RDMA_VM_ADDRESS_B=10.77.0.2
if [ $rdma = 1 ]; then
    rdma link add rxe0 type rxe netdev va || fail "cannot create rxe0"
    rdma link add rxe1 type rxe netdev vb || fail "cannot create rxe1"
    await_gid rxe0 10.77.0.1
    await_gid rxe1 10.77.0.2
fi

for port in /sys/class/virtio-ports/*; do
    case $($b cat $port/name) in
        out) out=/dev/${port##*/} ;;
        err) err=/dev/${port##*/} ;;
    esac
done
[ -n "$out" ] && [ -n "$err" ] || fail "no output ports"
read -r up _ </proc/uptime
echo "$up" >$job/ready
# Through cat: such a port opens once only, and programs may open /dev/stdout again.
$b mkfifo /run/rdma-vm/o /run/rdma-vm/e
$b cat /run/rdma-vm/o >$out &
cat_out=$!
$b cat /run/rdma-vm/e >$err &
cat_err=$!
/bin/sh $job/run </dev/null >/run/rdma-vm/o 2>/run/rdma-vm/e &
wait $!
status=$?
# What the job left behind may hold the pipes: it has two seconds.
($b sleep 2; kill $cat_out $cat_err) 2>/dev/null &
wait $cat_out $cat_err 2>/dev/null
echo $status >$job/status
$b sync
$b reboot -f
$b sleep 60
