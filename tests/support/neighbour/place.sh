# Lays unpacked packages over the machine's own directories, for the processes of this mount namespace alone, then stays
# until its standard input is closed, and ends all of them.
#
# BASE: a directory that is seen here and outside, for sockets and logs. TREES: the packages, the first one uppermost.
# CGROUP: the name below which what runs here may have made groups.
set -eu

mount --make-rprivate /
mount -t tmpfs -o mode=0755 netpath-test /mnt
mkdir /mnt/base /mnt/etc /mnt/work
mount --bind "$BASE" /mnt/base

for place in bin sbin lib share libexec; do
    lower=
    for tree in $TREES; do
        for dir in "$tree/$place" "$tree/usr/$place"; do
            [ ! -d "$dir" ] || lower="$lower$dir:"
        done
    done
    [ -z "$lower" ] || mount -t overlay -o "lowerdir=$lower/usr/$place" netpath-test "/usr/$place"
done
lower=
for tree in $TREES; do
    [ ! -d "$tree/etc" ] || lower="$lower$tree/etc:"
done
mount -t overlay -o "lowerdir=$lower/etc,upperdir=/mnt/etc,workdir=/mnt/work" netpath-test /etc

for place in /run /var/lib /var/log; do
    mount -t tmpfs -o mode=0755 netpath-test "$place"
done
mkdir -p "$BASE" /run/lock
mount --bind /mnt/base "$BASE"
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup

# The kernel loads what rules ask for by itself; further modules are the machine's business.
modprobe=$(readlink -f /usr/sbin/modprobe) && [ ! -e "$modprobe" ] || mount --bind /usr/bin/true "$modprobe"

echo ready
# Orphans are reaped while the shell waits.
exec 3<&0
cat <&3 >/dev/null &
wait
if [ $$ = 1 ]; then
    kill -KILL -1 2>/dev/null || :
else
    for process in /proc/[0-9]*; do
        [ "$process" = /proc/$$ ] || [ ! "$process/ns/mnt" -ef /proc/$$/ns/mnt ] || kill -KILL "${process#/proc/}" || :
    done
fi
for attempt in 1 2 3 4 5 6 7 8 9 10; do
    [ -d "/sys/fs/cgroup/$CGROUP" ] || break
    find "/sys/fs/cgroup/$CGROUP" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
done
