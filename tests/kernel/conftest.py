"""Network namespaces of the tests' own: the test runs inside one, another is the far end of the wires."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from evertap.kernel import bpf, codec, tun
from evertap.kernel.rtnetlink import Rtnetlink
from evertap.model.links import Link
from evertap.model.observed import Splicing

_CLONE_NEWNET = 0x40000000
_THIS_NETNS = Path("/proc/thread-self/ns/net")
_VNET_HEADER = 10  # bytes before each frame of a tap
_libc = ctypes.CDLL(None, use_errno=True)

MAC = "52:54:00:00:00:01"
FAR_MAC = "52:54:00:00:ff:01"
TAP_INDEX = 500_000


def frame(source: str, destination: str = FAR_MAC, text: bytes = b"hello") -> bytes:
    """An Ethernet frame of a protocol nobody speaks, padded to 60 bytes."""
    macs = bytes.fromhex((destination + source).replace(":", ""))
    return (macs + b"\x88\xb5" + text).ljust(60, b"\0")


def _enter(netns: int) -> None:
    if _libc.setns(netns, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _open_netns() -> int:
    return os.open(_THIS_NETNS, os.O_RDONLY | os.O_CLOEXEC)


def _new_netns() -> int:
    """Make a namespace and enter it. Gives its descriptor."""
    if _libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    return _open_netns()


class Lab:
    """The test's namespace (entered) and another one, `far`."""

    def __init__(self, far: int) -> None:
        self._far = far
        self.rtnetlink = Rtnetlink()

    def ip(self, line: str, *more: str) -> None:
        """Run ip(8); FAR in the line stands for the far namespace."""
        far = f"/proc/{os.getpid()}/fd/{self._far}"
        words = [far if word == "FAR" else word for word in line.split()]
        subprocess.run(["ip", *words, *more], check=True, capture_output=True)

    @contextmanager
    def far(self) -> Iterator[None]:
        """Do what is inside in the far namespace; sockets made there stay there."""
        here = _open_netns()
        _enter(self._far)
        try:
            yield
        finally:
            _enter(here)
            os.close(here)

    def wire(self, name: str, far_name: str = "far0") -> int:
        """A veth from here to the far namespace, up at both ends. Gives the index of the end here."""
        self.ip(f"link add {name} type veth peer name {far_name} address {FAR_MAC} netns FAR")
        self.ip(f"link set {name} up")
        with self.far():
            self.ip(f"link set {far_name} up")
        return socket.if_nametoindex(name)

    def link(self, name: str) -> Link:
        """What the kernel says of an interface."""
        return next(link for link in self.rtnetlink.dump_links() if link.name == name)

    def do(self, *messages: codec.Message) -> None:
        """Carry out requests that must not be refused."""
        assert self.rtnetlink.request([messages]) == [None]


class Port:
    """A packet socket that tells which frames of `frame`'s kind an interface receives."""

    def __init__(self, name: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        self._socket.bind((name, 0x88B5))

    def send(self, data: bytes) -> None:
        self._socket.send(data)

    def receive(self, wait: float = 1.0) -> bytes | None:
        """The next frame; None if none comes."""
        self._socket.settimeout(wait)
        try:
            return self._socket.recv(2048)
        except TimeoutError:
            return None

    def close(self) -> None:
        self._socket.close()


class Vmm:
    """A tap as a VMM holds it, with its splice map and the program on it."""

    def __init__(self, lab: Lab, name: str, *, tcx: bool = True) -> None:
        self.index = TAP_INDEX
        self.fd = tun.create_tap(name, index=self.index)
        os.set_blocking(self.fd, False)
        lab.do(codec.set_link(self.index, noarp=True, addrgen_none=True), codec.set_link(self.index, up=True))
        self.map = bpf.create_map(name)
        program = bpf.load_tap_program(self.map)
        if tcx:
            bpf.attach_tcx(self.index, program)
        else:
            lab.do(codec.add_clsact(self.index), codec.add_bpf_filter(self.index, program, bpf.TAP_PROGRAM))
        os.close(program)
        self.uplink_program = bpf.load_uplink_program(self.map, self.index)

    def splice(self, target: int, *, check: bool = False) -> None:
        bpf.write_map(self.map, Splicing(target, check, MAC))

    def send(self, data: bytes) -> None:
        os.write(self.fd, bytes(_VNET_HEADER) + data)

    def receive(self, wait: float = 1.0) -> bytes | None:
        """The next frame of `frame`'s kind that the guest would get; None if none comes."""
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            try:
                data = os.read(self.fd, 4096)[_VNET_HEADER:]
            except BlockingIOError:
                time.sleep(0.001)
                continue
            if struct.unpack_from(">H", data, 12) == (0x88B5,):
                return data
        return None

    def close(self) -> None:
        for fd in (self.fd, self.map, self.uplink_program):
            os.close(fd)


@pytest.fixture
def lab() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("takes root, for namespaces and devices of its own")
    host = _open_netns()
    spaces: list[int] = []
    try:
        spaces.append(_new_netns())
        spaces.append(_new_netns())
        _enter(spaces[0])
        place = Lab(spaces[1])
        yield place
        place.rtnetlink.close()
    finally:
        _enter(host)
        for fd in (*spaces, host):
            os.close(fd)


@pytest.fixture
def vmm(lab: Lab) -> Iterator[Vmm]:
    machine = Vmm(lab, "web0")
    yield machine
    machine.close()
