"""A real macvtap, opened as the daemon opens it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evertap.lab.errors import LabError
from evertap.lab.netns import Namespace


@contextmanager
def open_macvtap(
    namespace: Namespace, lower: str, name: str, mac: str = "52:54:00:00:00:01"
) -> Iterator[tuple[int, int]]:
    """A macvtap on `lower`: its index and an open descriptor of it. Both go at the end."""
    namespace.ip(
        "link", "add", "link", lower, "name", name, "address", mac, "type", "macvtap", "mode", "bridge"
    )
    try:
        namespace.ip_batch([f"link set {name} addrgenmode none", f"link set {name} up"])
        index = int(namespace.run("cat", f"/sys/class/net/{name}/ifindex"))
        major, minor = namespace.run("cat", f"/sys/class/net/{name}/tap{index}/dev").split(":")
        device = Path(f"/dev/tap{index}")  # made by devtmpfs, whatever the namespace
        assert device.stat().st_rdev == os.makedev(int(major), int(minor))
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            yield index, descriptor
        finally:
            os.close(descriptor)
    finally:
        try:
            namespace.ip("link", "del", name)
        except LabError as error:
            if "Cannot find device" not in str(error):
                raise
