"""A peer: systemd-networkd, alone in a lab's namespace, puts an uplink that returns into a bridge."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Final

from bench.fleet import Scene
from bench.observer import others
from evertap.lab.errors import LabError

PROGRAM: Final = Path("/usr/lib/systemd/systemd-networkd")

# The namespace's mounts are its own: nothing of the host's is written. A sysfs that is read-only tells
# networkd that there is no udev to wait for, as in a container.
_PREPARE: Final = """
mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /etc/systemd && mount -o remount,bind,ro /sys || exit 1
mkdir -p /run/systemd/netif /etc/systemd/network
chown -R systemd-network:systemd-network /run/systemd/netif
cd /etc/systemd/network
printf '[NetDev]\\nName=br0\\nKind=bridge\\n' > br0.netdev
printf '[Match]\\nName=br0\\n[Network]\\nConfigureWithoutCarrier=yes\\nLinkLocalAddressing=no\\n' \\
    > br0.network
printf '[Match]\\nName=%s\\n[Network]\\nBridge=br0\\n' "$1" > uplink.network
"""


class Networkd(Scene):
    """networkd with one bridge, whose port `uplink` is to be."""

    def __init__(self, uplink: str) -> None:
        with others():
            super().__init__()
            self.lab.host.run("sh", "-c", _PREPARE, "prepare", uplink)
            process = self.lab.host.popen([PROGRAM], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self.stack.callback(process.communicate)
            self.stack.callback(process.kill)
        deadline = time.monotonic() + 10
        while "br0" not in (said := self.lab.host.ip("-br", "link", "show", "up")):
            if process.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"systemd-networkd has not set up its bridge: {said}")
            time.sleep(0.1)
