#!/bin/busybox sh
# The guest's first process: drivers, network, then obedience to what comes by the serial line.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
dmesg -n 1 # the kernel's messages would run into the shell's

# Addresses are usable at once, without duplicate address detection.
echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad

ip=192.0.2.10/24
ip6=2001:db8::10/64
for word in $(cat /proc/cmdline); do
    case $word in
        evertap.ip=*) ip=${word#*=} ;;
        evertap.ip6=*) ip6=${word#*=} ;;
    esac
done

cat > /bin/net-up << END
#!/bin/sh
# Brings up a network card; eth0 has the guest's addresses. Also run for cards that are plugged in later.
[ "\${ACTION:-add}" = add ] || exit 0
case \$INTERFACE in eth*) ;; *) exit 0 ;; esac
[ "\$INTERFACE" = eth0 ] && ip addr add $ip dev eth0
ip link set "\$INTERFACE" up
[ "\$INTERFACE" = eth0 ] && ip -6 addr add $ip6 dev eth0
END
chmod +x /bin/net-up

ip link set lo up
while read -r module; do
    insmod "/modules/$module"
done < /modules/order
for card in /sys/class/net/eth*; do
    [ -e "$card" ] && INTERFACE=${card##*/} net-up
done
uevent /bin/net-up > /dev/null 2>&1 &

# The carrier shows a moment after the card is up. Without an uplink it may never come.
tries=0
while [ $tries -lt 25 ] && grep -q 0 /sys/class/net/eth0/carrier 2> /dev/null; do
    usleep 20000
    tries=$((tries + 1))
done

exec < /dev/ttyS0 > /dev/ttyS0 2>&1
stty raw -echo
echo evertap-guest: ready
# No interactive shell, with its prompts and echoes: the other side is a program (console.py). And not
# in this process, which inherits all orphans: busybox forgets a half-read line when a child ends.
(
    while read -r line; do
        eval "$line"
    done
)
