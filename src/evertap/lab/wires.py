"""Two namespaces and the wires between them: `host`, where evertap runs, and `wire`, all outside of it."""

import zlib
from contextlib import suppress
from types import TracebackType
from typing import Self

from evertap.lab.errors import LabError
from evertap.lab.netns import Namespace

WIRE_MAC = "02:00:00:00:00:01"
WIRE_IPV4 = "192.0.2.1"
WIRE_IPV6 = "2001:db8::1"

# A guest's ARP entry lives for an hour, so that the measured length of an outage is the backend's and
# not that of the wait for the next ARP request (1 s); where one is needed, it is repeated every 50 ms.
_NEIGHBOURS = "base_reachable 3600000 retrans 50"

# net0 would lose its carrier, and with it its ARP entries, together with the last uplink. The pair
# keep0/keep1 holds it up; it is deaf and dumb (no ARP, no addresses).
_WIRE = (
    f"link add net0 address {WIRE_MAC} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
    "link set net0 addrgenmode none",
    f"ntable change name arp_cache dev net0 {_NEIGHBOURS}",
    f"ntable change name ndisc_cache dev net0 {_NEIGHBOURS}",
    "link add keep0 type veth peer name keep1",
    "link set keep0 addrgenmode none arp off master net0",
    "link set keep1 addrgenmode none arp off",
    "link set keep0 up",
    "link set keep1 up",
    f"addr add {WIRE_IPV4}/24 dev net0",
    f"addr add {WIRE_IPV6}/64 dev net0 nodad",
    "link set net0 up",
)


class Lab:
    """The host's side and the network's side of a machine that does not exist.

    In `wire` a bridge `net0` stands for the network, with the addresses WIRE_IPV4 and WIRE_IPV6. Every
    uplink is a veth pair: the near end lies in `host`, the far end is a port of `net0`. All methods
    raise LabError with what `ip` said.
    """

    def __init__(self) -> None:
        self._far: dict[str, str] = {}
        self._made = 0
        self.host = Namespace("host")
        try:
            self.wire = Namespace("wire")
        except BaseException:
            self.host.close()
            raise
        try:
            self.wire.ip_batch(_WIRE)
        except BaseException:
            self.close()
            raise

    def uplink(self, name: str, mac: str | None = None, mtu: int | None = None, up: bool = True) -> None:
        """Plug in the host interface `name`. It is silent: the host's stack sends nothing by itself.

        `up=False` leaves the near end down, as an interface is that nobody has configured yet.
        """
        self._made += 1
        far = f"far-{self._made}-{name}"[:15]
        # The far MAC is fixed: a new one would outdate what the other side has learnt.
        far_mac = _mac("02:fa", name)
        size = f"mtu {mtu} " if mtu else ""
        address = f"address {mac} " if mac else ""
        # The near end gets its name last, so that whoever waits for the name finds it silent, with the
        # far end ready.
        fresh = f"new-{self._made}"
        self.wire.ip_batch(
            [
                f"link add {far} address {far_mac} {size}type veth "
                f"peer name {fresh} {address}{size}netns {self.host.pid}",
                f"link set {far} addrgenmode none master net0",
                f"link set {far} up",
            ]
        )
        try:
            self.host.ip_batch(
                [f"link set {fresh} addrgenmode none", f"link set {fresh} name {name}"]
                + ([f"link set {name} up"] if up else [])
            )
        except LabError:
            with suppress(LabError):
                self.wire.ip("link", "del", far)
            raise
        self._far[name] = far

    def remove(self, name: str) -> None:
        """Unplug an interface (an uplink, or any other in `host`); no matter if it is gone already."""
        self._far.pop(name, None)
        try:
            self.host.ip("link", "del", name)
        except LabError as error:
            if "Cannot find device" not in str(error):
                raise

    def rename(self, old: str, new: str) -> None:
        """Give an interface of `host` another name, without taking it down where the kernel can do that."""
        try:
            self.host.ip("link", "set", old, "name", new)
        except LabError as error:
            # Linux before 6.2 renames only what is down.
            if "busy" not in str(error):
                raise
            self.host.ip_batch([f"link set {old} down", f"link set {old} name {new}", f"link set {new} up"])
        if old in self._far:
            self._far[new] = self._far.pop(old)

    def carrier(self, name: str, on: bool) -> None:
        """Take the uplink's carrier away or give it back: the cable is pulled, the interface stays."""
        if name not in self._far:
            raise LabError(f"{name!r} is no uplink of this lab; there are: {', '.join(self._far) or 'none'}")
        self.wire.ip("link", "set", self._far[name], "up" if on else "down")

    def bridge(self, name: str, *ports: str) -> None:
        """Make a bridge in `host` with these interfaces as its ports. It is silent, too."""
        mac = _mac("02:b0", name)
        self.host.ip_batch(
            [
                f"link add {name} address {mac} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
                f"link set {name} addrgenmode none",
                *(f"link set {port} master {name}" for port in ports),
                f"link set {name} up",
            ]
        )

    def close(self) -> None:
        """Take everything down. May be called twice."""
        self.host.close()
        self.wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _mac(prefix: str, name: str) -> str:
    return f"{prefix}:{zlib.crc32(name.encode()).to_bytes(4, 'big').hex(':')}"
