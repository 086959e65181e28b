#!/bin/busybox sh
# Process 1 of the machine that `cargo xtask vm` boots. In: /vm/environment, /vm/modules (one path a line, in the
# order of loading), /vm/suites (name, TAB, program). Out: on the device $RESULTS, lines that begin with "hublet-vm:"
# and what the suites print between them; then power-off. A pure cgroup v2 host with nothing mounted that hublet can
# mount itself (bpffs).
say() { echo "hublet-vm: $*"; }

/bin/busybox mkdir -p /busybox /proc /sys /dev /tmp /run /root
/bin/busybox --install -s /busybox
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/busybox HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=755 tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
. /vm/environment
# Two devices, so that the kernel's lines never stand within the suites'.
exec </dev/null >"$RESULTS" 2>&1
stty -F "$RESULTS" raw -echo
# As systemd gives them to services.
ulimit -Hn 524288
say up

while read -r module; do
    insmod "$module" || echo "$module does not load: see the console's log"
done </vm/modules
ip link set lo up
# As services are on a node: not in the root cgroup.
mkdir /sys/fs/cgroup/suites
echo $$ >/sys/fs/cgroup/suites/cgroup.procs

link=lo
for kind in dummy ifb bridge; do
    if ip link add probe0 type "$kind" 2>/dev/null; then
        ip link del probe0
        link=$kind
        break
    fi
done
# What the kernel has hublet must use: the suite `interface` compares.
export HUBLET_TEST_LINK_KIND="$link"
tcx=absent
grep -q ' tcx_prog_attach$' /proc/kallsyms && tcx=present
say fact release "$(uname -r)"
say fact link "$link"
say fact tcx "$tcx"
# `none [integrity] confidentiality`
lockdown=absent
mount -t securityfs securityfs /sys/kernel/security 2>/dev/null
[ -e /sys/kernel/security/lockdown ] && lockdown=$(sed 's/.*\[\(.*\)\].*/\1/' /sys/kernel/security/lockdown)
say fact lockdown "$lockdown"

while IFS='	' read -r name program; do
    say begin "$name"
    # shellcheck disable=SC2086 # several words
    "$program" --test-threads="$THREADS" $LEFT_OUT </dev/null
    say end "$name" $?
done </vm/suites
say "done"
poweroff -f
