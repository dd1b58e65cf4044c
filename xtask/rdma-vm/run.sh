#!/usr/bin/env bash
# Runs a command on real RDMA verbs, on a machine that has no NIC for them.
#
#   run.sh [OPTION…] -- COMMAND [ARG…]
#   run.sh --prepare                     fills the cache and stops
#
# Boots Debian's kernel in QEMU, loads SoftRoCE on the two ends of a link, runs COMMAND there and exits with its status.
#
#   rxe0 on va, 10.77.0.1   <-- link -->   rxe1 on vb, 10.77.0.2
#
# Nothing is installed: apt-get fetches the kernel, QEMU where there is none, and the verbs library, and they are
# unpacked in the cache. The guest sees the host's file system, read-only, below a layer that is thrown away, so what
# was built here runs there at the same path. It has no network but its own link.
#
#   --timeout SECONDS  ends the VM (300)           --no-rdma       the same VM without an RDMA device
#   --memory MIB       of the guest (2048)         --accel WHICH   auto, kvm or tcg (auto)
#   --cpus N           of the guest (2)            --mtu N         of the link (9000, which gives RoCE 4096)
#   --cache DIR        (~/.cache/memkv/rdma-vm)    --verbose       shows the guest's console and times
#   --rw DIR           DIR is writable there       --env NAME=V    sets a variable there
#   --keep             leaves the console and the logs of the VM, and says where
#
# PATH, HOME, LANG and all RUST*, MEMKV* and CARGO* variables are passed on.
# Exits with 124 after a timeout and with 125 if the VM itself failed.

# shellcheck disable=SC2054   # the commas are QEMU options
set -u
set -o pipefail

die() { printf 'rdma-vm: %s\n' "$*" >&2; exit 125; }
note() { [ "$verbose" = 1 ] && printf 'rdma-vm: %s\n' "$*" >&2; return 0; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/memkv/rdma-vm
timeout_s=300 memory=2048 cpus=2 accel=auto mtu=9000 verbose=0 rdma=1 only_prepare=0 keep=0
rw_dirs=() variables=()
while [ $# -gt 0 ]; do
    case $1 in
        --no-rdma) rdma=0; shift; continue ;;
        --prepare) only_prepare=1; shift; continue ;;
        --verbose) verbose=1; shift; continue ;;
        --keep) keep=1; shift; continue ;;
        --) shift; break ;;
    esac
    [ $# -ge 2 ] || die "$1 needs a value"
    case $1 in
        --timeout) timeout_s=$2 ;;
        --memory) memory=$2 ;;
        --cpus) cpus=$2 ;;
        --cache) cache=$2 ;;
        --rw) rw_dirs+=("$2") ;;
        --env) variables+=("$2") ;;
        --accel) accel=$2 ;;
        --mtu) mtu=$2 ;;
        *) die "unknown option $1" ;;
    esac
    shift 2
done
[ "$only_prepare" = 1 ] || [ $# -gt 0 ] || die "no command"
[ "$(uname -m)" = x86_64 ] || die "only x86_64 is supported"
mkdir -p "$cache" || die "cannot create $cache"
cache=$(cd "$cache" && pwd -P)
for i in "${!rw_dirs[@]}"; do
    rw_dirs[i]=$(cd "${rw_dirs[i]}" 2>/dev/null && pwd -P) || die "--rw: no such folder"
done

# ---- The cache: `tools`, `qemu` (where the host has none), `vmlinux`, `initrd.gz`, and `stamp`, which says what they
# ---- were made from. A different stamp makes them again. Raise the recipe when something else about them changes.
recipe=1
modules="virtio_pci virtio_console 9pnet_virtio 9p overlay veth crc32_generic crc32_pclmul ib_uverbs rdma_ucm rdma_rxe"
tools="libibverbs1 librdmacm1 libibumad3 libnl-3-200 libnl-route-3-200 ibverbs-providers ibverbs-utils perftest iproute2"

updated=0
apt_update() {
    [ "$updated" = 1 ] && return 0
    apt-get -qq update >>"$log" 2>&1 || note "apt-get update failed; the lists at hand have to do"
    updated=1
}

# Unpacks packages, and what they need that the host does not have, below a folder.
fetch_unpack() { # DIR PACKAGE…
    local dir=$1 deb link
    shift
    local debs=$work/debs.${dir##*/}
    mkdir -p "$debs/partial" "$dir/usr/bin" "$dir/usr/sbin" "$dir/usr/lib" "$dir/usr/lib64"
    # As on the host, where these are links: a package's own /lib would hide the host's.
    for link in bin sbin lib lib64; do ln -sfn "usr/$link" "$dir/$link"; done
    apt_update
    # With --reinstall the named packages come even where they are installed, so the cache does not depend on that.
    # Without locking, because the state of the host's packages does not change.
    apt-get -qq -y --no-install-recommends --download-only --reinstall \
        -o Debug::NoLocking=1 -o APT::Sandbox::User=root \
        -o Dir::Cache::archives="$debs" install "$@" >>"$log" 2>&1 ||
        die "apt-get could not download $* (see $log)"
    for deb in "$debs"/*.deb; do
        case ${deb##*/} in libc6_* | libc-bin_*) continue ;; esac
        dpkg --fsys-tarfile "$deb" |
            tar -x --keep-directory-symlink --no-same-owner -C "$dir" --exclude './usr/share/doc*' --exclude './usr/share/man*' ||
            die "cannot unpack $deb"
    done
    rm -rf "$debs"
}

# Unpacks a kernel, which boots some seconds sooner that way under emulation. The header of the boot protocol says
# where the packed kernel is, and its last four bytes how long it becomes.
unpack_kernel() { # BZIMAGE OUT
    local sectors offset length magic wanted tool
    number() { od -An -v -t"u$3" -j "$2" -N "$3" "$1" | tr -d ' '; }
    sectors=$(number "$1" 497 1)
    offset=$(number "$1" 584 4)
    length=$(number "$1" 588 4)
    offset=$(((sectors + 1) * 512 + offset))
    magic=$(od -An -v -tx1 -j $offset -N 4 "$1" | tr -d ' ')
    wanted=$(number "$1" $((offset + length - 4)) 4)
    case $magic in
        fd377a58) tool='xz -dc' ;;
        1f8b*) tool='gzip -dc' ;;
        28b52ffd) tool='zstd -dc' ;;
        *) return 1 ;;
    esac
    command -v "${tool%% *}" >/dev/null || return 1
    tail -c +$((offset + 1)) "$1" | head -c $((length - 4)) | $tool >"$2" 2>>"$log"
    [ "$(stat -c %s "$2")" = "$wanted" ]
}

# Sets qemu=(command…): the host's own, or the unpacked one.
find_qemu() {
    local root=$cache/qemu/usr
    if command -v qemu-system-x86_64 >/dev/null; then
        qemu=(qemu-system-x86_64)
    else
        # The firmware is in two places, and QEMU has to be told where its modules are.
        qemu=(env "LD_LIBRARY_PATH=$root/lib/x86_64-linux-gnu" "QEMU_MODULE_DIR=$root/lib/x86_64-linux-gnu/qemu"
            "$root/bin/qemu-system-x86_64" -L "$root/share/qemu" -L "$root/share/seabios")
    fi
    "${qemu[@]}" --version >/dev/null 2>&1
}

# Copies the modules in the order in which they load.
collect_modules() { # KERNEL VERSION INITRD
    local module file kmod_path=$PATH
    if ! command -v depmod >/dev/null; then
        fetch_unpack "$work/kmod" kmod
        kmod_path=$work/kmod/usr/bin:$PATH # the package's own links are absolute
        ln -sf kmod "$work/kmod/usr/bin/depmod"
        ln -sf kmod "$work/kmod/usr/bin/modprobe"
        export LD_LIBRARY_PATH=$work/kmod/usr/lib/x86_64-linux-gnu
    fi
    PATH=$kmod_path depmod -b "$1" "$2" >>"$log" 2>&1 || die "depmod failed (see $log)"
    for module in $modules; do
        PATH=$kmod_path modprobe -d "$1" -S "$2" -C /dev/null --show-depends "$module" 2>>"$log" ||
            die "the kernel has no module $module"
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' >"$work/order" || exit 125
    unset LD_LIBRARY_PATH
    while read -r file; do
        module=${file##*/}
        case $module in
            *.xz) module=${module%.xz}; xz -dc "$file" >"$3/modules/$module" ;;
            *.zst) module=${module%.zst}; zstd -dcq "$file" >"$3/modules/$module" ;;
            *) cp "$file" "$3/modules/$module" ;;
        esac || die "cannot copy $file"
        echo "$module" >>"$3/modules/order"
    done <"$work/order"
}

make_initrd() { # KERNEL VERSION
    local initrd=$work/initrd
    mkdir -p "$initrd"/{bin,modules,proc,sys,dev,lower,tools,upper,guest}
    dpkg --fsys-tarfile "$work"/busybox-static_*.deb | tar -x -O ./bin/busybox >"$initrd/bin/busybox" || die "no busybox"
    chmod 755 "$initrd/bin/busybox"
    collect_modules "$1" "$2" "$initrd"
    install -m 755 "$here/init.sh" "$initrd/init"
    install -m 755 "$here/stage.sh" "$initrd/stage.sh"
    # busybox has a cpio, so the host needs none.
    (cd "$initrd" && find . | ./bin/busybox cpio -o -H newc 2>>"$log" | gzip -6) >"$work/initrd.gz" ||
        die "cannot pack the initrd"
    mv "$work/initrd.gz" "$cache/initrd.gz"
}

prepare() {
    local stamp package version
    stamp="$recipe $(cat "$here/init.sh" "$here/stage.sh" | cksum)"
    if [ "$(cat "$cache/stamp" 2>/dev/null)" = "$stamp" ] && find_qemu; then return 0; fi
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || die "needs apt-get and dpkg, or a NIC with verbs"
    export DEBIAN_FRONTEND=noninteractive
    work=$cache/work.$$
    rm -rf "$cache"/work.*
    mkdir -p "$work"
    trap 'rm -rf "$work"' EXIT
    log=$cache/prepare.log
    : >"$log"
    printf 'rdma-vm: fetching a kernel and QEMU into %s (once)\n' "$cache" >&2
    if ! find_qemu; then
        rm -rf "$cache/qemu"
        fetch_unpack "$cache/qemu" qemu-system-x86 qemu-system-common qemu-system-data seabios
        find_qemu || die "QEMU does not start: $("${qemu[@]}" --version 2>&1 | head -3)"
    fi
    rm -rf "$cache/tools"
    # shellcheck disable=SC2086
    fetch_unpack "$cache/tools" $tools
    # The kernel is not the cloud's flavour: that one has no SoftRoCE.
    apt_update
    package=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -1)
    [ -n "$package" ] || die "no linux-image-amd64 in the package lists"
    (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$package" busybox-static) >>"$log" 2>&1 ||
        die "apt-get could not download $package (see $log)"
    mkdir "$work/kernel"
    dpkg --fsys-tarfile "$work"/linux-image-*.deb | tar -x -C "$work/kernel" ./boot ./lib/modules ||
        die "cannot unpack $package"
    version=$(cd "$work/kernel/lib/modules" && echo *)
    unpack_kernel "$work/kernel/boot/vmlinuz-$version" "$work/vmlinux" || {
        note "the kernel stays packed"
        cp "$work/kernel/boot/vmlinuz-$version" "$work/vmlinux"
    }
    mv "$work/vmlinux" "$cache/vmlinux"
    make_initrd "$work/kernel" "$version"
    rm -rf "$work"
    trap - EXIT
    printf '%s' "$stamp" >"$cache/stamp"
}

# ---- The VM.
quote() { printf "'%s'" "${1//\'/\'\\\'\'}"; }

# The job's folder is shared with the guest: what to run there, and its status.
make_job() { # COMMAND…
    local name pair
    { echo "rdma=$rdma"; echo "mtu=$mtu"; } >"$run/conf"
    : >"$run/rw"
    for name in ${rw_dirs[@]+"${rw_dirs[@]}"}; do printf '%s\n' "$name" >>"$run/rw"; done
    {
        for name in $(compgen -e); do
            case $name in PATH | HOME | LANG | RUST* | MEMKV* | CARGO*)
                printf 'export %s=%s\n' "$name" "$(quote "${!name}")" ;;
            esac
        done
        for pair in ${variables[@]+"${variables[@]}"}; do
            printf 'export %s=%s\n' "${pair%%=*}" "$(quote "${pair#*=}")"
        done
        printf 'cd %s || exit 125\nexec' "$(quote "$PWD")"
        for name in "$@"; do printf ' %s' "$(quote "$name")"; done
        echo
    } >"$run/run"
}

# Sets machine=(…). A /dev/kvm alone proves nothing: it takes the processor's flag, and a kernel that really boots.
# The answer is kept until the host boots again.
choose_machine() {
    local tcg=(-machine q35,accel=tcg -cpu max,-erms) # emulated, `rep movsb` copies byte by byte
    local kvm=(-machine q35,accel=kvm -cpu host)
    local answer
    machine=("${tcg[@]}")
    case $accel in tcg) return 0 ;; kvm) machine=("${kvm[@]}"); return 0 ;; esac
    [ -w /dev/kvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo || return 0
    answer=$cache/kvm.$(cat /proc/sys/kernel/random/boot_id)
    if [ ! -e "$answer" ]; then
        rm -f "$cache"/kvm.*
        if timeout -k 1 15 "${qemu[@]}" "${kvm[@]}" -m 512 -nodefaults -display none -no-reboot \
            -kernel "$cache/vmlinux" -initrd "$cache/initrd.gz" \
            -append 'console=ttyS0 quiet panic=-1 rdma_vm_probe=1' -serial stdio </dev/null 2>/dev/null |
            grep -q rdma-vm-probe-ok; then echo yes >"$answer"; else echo no >"$answer"; fi
    fi
    [ "$(cat "$answer")" = yes ] && machine=("${kvm[@]}")
    return 0
}

start_vm() { # in the background; the caller reads $!
    local dir=${run//,/,,} tools_dir=${cache//,/,,}/tools quiet=quiet i args # ,, is QEMU's comma in a path
    [ "$verbose" = 1 ] && quiet=
    args=("${machine[@]}" -smp "$cpus" -m "$memory" -nodefaults -display none -no-reboot -no-user-config
        -kernel "$cache/vmlinux" -initrd "$cache/initrd.gz"
        # Emulated or thrown away: no mitigations, no address randomisation.
        -append "console=ttyS0 $quiet panic=-1 mitigations=off nopti nokaslr random.trust_cpu=on tsc=reliable audit=0 rdma_vm_accel=${machine[1]##*=}"
        -serial "file:$dir/console"
        -fsdev "local,id=hostroot,path=/,security_model=none,readonly=on,multidevs=remap"
        -device virtio-9p-pci,fsdev=hostroot,mount_tag=hostroot
        -fsdev "local,id=tools,path=$tools_dir,security_model=none,readonly=on"
        -device virtio-9p-pci,fsdev=tools,mount_tag=tools
        -fsdev "local,id=job,path=$dir,security_model=none"
        -device virtio-9p-pci,fsdev=job,mount_tag=job
        -device virtio-serial-pci
        -chardev "file,id=out,path=$dir/out" -device virtserialport,chardev=out,name=out
        -chardev "file,id=err,path=$dir/err" -device virtserialport,chardev=err,name=err)
    for i in "${!rw_dirs[@]}"; do
        args+=(-fsdev "local,id=rw$i,path=${rw_dirs[i]//,/,,},security_model=none,multidevs=remap"
            -device "virtio-9p-pci,fsdev=rw$i,mount_tag=rw$i")
    done
    timeout -k 5 "$timeout_s" "${qemu[@]}" "${args[@]}" </dev/null >"$run/qemu.log" 2>&1 &
}

exec 9>"$cache/lock" || die "cannot write to $cache"
flock 9 # one preparation at a time
prepare
exec 9>&-
[ "$only_prepare" = 1 ] && exit 0
choose_machine

run=$(mktemp -d "${TMPDIR:-/tmp}/rdma-vm.XXXXXX") || die "no temporary folder"
children=()
cleanup() {
    local child
    for child in ${children[@]+"${children[@]}"}; do kill "$child" 2>/dev/null; done
    wait 2>/dev/null
    if [ "$keep" = 1 ]; then echo "rdma-vm: kept $run" >&2; else rm -rf "$run"; fi
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
make_job "$@"
mkfifo "$run/out" "$run/err"
cat <"$run/out" & cats=("$!")
cat <"$run/err" >&2 & cats+=("$!")
start_vm
vm=$!
children+=("$vm")
wait "$vm"
ended=$?
# A QEMU that never opened the pipes leaves the cats waiting: opening and closing ends them.
for pipe in out err; do : <>"$run/$pipe"; done
[ "$ended" = 124 ] || [ "$ended" = 137 ] || wait "${cats[@]}" 2>/dev/null
children=("${cats[@]}")

[ "$verbose" = 1 ] && tr -d '\r' <"$run/console" | sed -n '/Run \/init/,$p' >&2
note "accelerator ${machine[1]##*=}; the job began $(cat "$run/ready" 2>/dev/null || echo '?') s after the kernel"
status=$(cat "$run/status" 2>/dev/null)
if [ -n "$status" ]; then
    [ "$status" = 125 ] && grep -a 'rdma-vm:' "$run/console" >&2
    exit "$status"
fi
if [ "$ended" = 124 ] || [ "$ended" = 137 ]; then
    printf 'rdma-vm: ended after %s s\n' "$timeout_s" >&2
    exit 124
fi
printf 'rdma-vm: the VM ended without a result (QEMU status %s)\n' "$ended" >&2
{ cat "$run/qemu.log"; tail -n 25 "$run/console"; } 2>/dev/null | tr -d '\r' >&2
exit 125
