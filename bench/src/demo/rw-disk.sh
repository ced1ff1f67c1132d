# SPDX-License-Identifier: MIT
# A read-write disk from its making to its last layer. Shows each command and runs it;
# ends with an error where what is read back is not what was written.
# Needs: MODULE, the driver; FILES, a folder to write; the tool on the PATH; an empty
# drive /dev/nvme0n1.
set -eu

part() { printf '\n# %s\n' "$*"; }
show() { printf '$ %s\n' "$*"; "$@"; }
content() { sha256sum < "$1" | cut -d ' ' -f 1; }

insmod "$MODULE"
mkfs.ext4 -q -F /dev/nvme0n1
mkdir -p /run/place /run/fs
mount /dev/nvme0n1 /run/place
cd /run/place

part 'A disk of layers is a folder. The driver shows it as a block device, a writer stays behind.'
show obd create --rw --size 256M disk
show obd attach --writable --name demo disk
disk=/dev/$(cat /sys/kernel/config/obd/demo/device)
show obd list

part 'A file system on it. What is synced is in the log; layers are made of that meanwhile.'
show mkfs.ext4 -q "$disk"
show mount "$disk" /run/fs
show cp -r "$FILES" /run/fs
show dd if=/dev/urandom of=/run/fs/noise bs=64k count=400 oflag=sync status=none
show ls -sh disk disk/layers

part 'What is not in a layer yet becomes one when the disk is detached.'
show umount /run/fs
written=$(content "$disk")
show obd detach demo
show ls -sh disk disk/layers
show obd compact disk

part 'Only layers are left: they are attached read-only, with nothing that writes.'
show obd attach --name demo disk/image.json
disk=/dev/$(cat /sys/kernel/config/obd/demo/device)
show obd list
show mount -t ext4 -o ro "$disk" /run/fs
show diff -r "$FILES" "/run/fs/${FILES##*/}"
read=$(content "$disk")
printf 'sha256 of the disk before: %s\n              and of it now: %s\n' "$written" "$read"
show umount /run/fs
show obd detach demo
cd /; umount /run/place
if [ "$written" != "$read" ]; then
    echo 'they differ' >&2
    exit 1
fi
