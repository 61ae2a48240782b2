"""Uplinks that come and go quickly: `ip -batch` processes that wait for their next line."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from evertap.lab.netns import Namespace
from evertap.lab.wires import Lab


class Ip:
    """An `ip -batch` in a namespace; a line takes effect about 0.1 ms after it was written."""

    def __init__(self, namespace: Namespace) -> None:
        self._process = namespace.popen(["ip", "-batch", "-"], stdin=subprocess.PIPE, text=True, bufsize=1)

    def tell(self, line: str) -> None:
        """Have one command carried out, without waiting for it."""
        assert self._process.stdin is not None
        print(line, file=self._process.stdin)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


class Plug:
    """Plugs uplinks into a lab's host without the 10 ms that a process takes to start."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        # The interface is silent: the host's stack sends nothing by itself.
        lab.host.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/addr_gen_mode")
        self._stack = ExitStack()
        self.host = Ip(lab.host)
        self._stack.callback(self.host.close)
        self.wire = Ip(lab.wire)
        self._stack.callback(self.wire.close)

    def prepare(self, name: str) -> None:
        """Have an interface ready outside of the host, down, whose far end is up."""
        far = f"far-{name}"
        self.lab.wire.ip_batch(
            [
                f"link add {far} type veth peer name {name}",
                f"link set {far} addrgenmode none master net0",
                f"link set {far} up",
            ]
        )

    def appear(self, name: str) -> None:
        """Put the prepared interface into the host, still down."""
        self.wire.tell(f"link set {name} netns {self.lab.host.pid}")

    def up(self, name: str) -> None:
        """Set the interface up; it has its carrier at once."""
        self.host.tell(f"link set {name} up")

    def carrier(self, name: str, on: bool) -> None:
        """Pull the cable, or plug it in."""
        self.wire.tell(f"link set far-{name} {'up' if on else 'down'}")

    def remove(self, name: str) -> None:
        """Take the interface away, and return when it has gone."""
        self.lab.host.ip("link", "del", name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
