"""Throughput of a real guest on each backend and its peers, in one run: python -m bench.backends [SECONDS]"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from evertap.kernel.macvtap import open_macvtap
from evertap.kernel.rtnetlink import Rtnetlink
from evertap.lab.image import GuestImage, build
from evertap.lab.qemu import QemuGuest
from evertap.lab.trial import Trial
from evertap.lab.wires import WIRE_IPV4, Lab

MAC = "52:54:00:12:34:56"
RUNS = 3

Setup = Callable[[Lab, GuestImage], AbstractContextManager[QemuGuest]]


def _card(netdev: str) -> list[str]:
    return ["-netdev", netdev, "-device", f"virtio-net-pci,netdev=n0,mac={MAC}"]


@contextmanager
def native_macvtap(lab: Lab, image: GuestImage) -> Iterator[QemuGuest]:
    """A macvtap that QEMU gets at its start, as libvirt's type='direct' does it. Cannot be changed later."""
    lab.host.ip(
        "link", "add", "link", "up0", "name", "mvt0", "address", MAC, "type", "macvtap", "mode", "bridge"
    )
    lab.host.ip("link", "set", "mvt0", "up")
    with lab.host.enter(), Rtnetlink() as rtnetlink:
        index = next(link.index for link in rtnetlink.dump_links() if link.name == "mvt0")
        descriptor = open_macvtap(index, rtnetlink)
    try:
        with QemuGuest(lab.host, image, _card(f"tap,id=n0,fd={descriptor}"), pass_fds=[descriptor]) as guest:
            yield guest
    finally:
        os.close(descriptor)


@contextmanager
def bridge(lab: Lab, image: GuestImage) -> Iterator[QemuGuest]:
    """A tap on a Linux bridge."""
    lab.host.ip("tuntap", "add", "tap0", "mode", "tap", "vnet_hdr")
    lab.host.ip("link", "set", "tap0", "up")
    lab.bridge("br0", "up0", "tap0")
    with QemuGuest(lab.host, image, _card("tap,id=n0,ifname=tap0,script=no,downscript=no")) as guest:
        yield guest


def evertap(backend: str) -> Setup:
    """One of our backends."""

    @contextmanager
    def setup(lab: Lab, image: GuestImage) -> Iterator[QemuGuest]:
        with Trial(lab.host) as trial:
            trial.start()
            trial.define("web0", f'mac = "{MAC}"\nuplinks = ["up0"]\nbackend = "{backend}"\n')
            with QemuGuest(lab.host, image, trial.arguments("web0")) as guest:
                yield guest

    return setup


SETUPS: dict[str, Setup] = {
    "native macvtap": native_macvtap,
    "evertap, backend tap": evertap("tap"),
    "evertap, backend macvtap (hub)": evertap("macvtap"),
    "Linux bridge": bridge,
}


def measure(setup: Setup, image: GuestImage, seconds: int) -> tuple[list[float], list[float]]:
    """Mbit/s guest to peer and peer to guest, of each run."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        lab.uplink("up0")
        guest = stack.enter_context(setup(lab, image))
        guest.boot()
        server = lab.wire.popen(["iperf3", "-s"], stdout=-3)
        try:
            guest.sh(f"until ping -c 1 -W 1 {WIRE_IPV4}; do :; done", timeout=20)
            time.sleep(0.5)
            sent: list[float] = []
            received: list[float] = []
            for _ in range(RUNS):
                for rates, option in ((sent, ""), (received, "-R")):
                    said = guest.sh(
                        f"iperf3 -J -c {WIRE_IPV4} -t {seconds} -O 1 {option}", timeout=seconds + 20
                    )
                    rates.append(json.loads(said)["end"]["sum_received"]["bits_per_second"] / 1e6)
            return sent, received
        finally:
            server.kill()
            server.wait()


def main() -> None:
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    cache = Path(os.environ.get("EVERTAP_GUEST_CACHE") or Path.home() / ".cache" / "evertap" / "guest")
    image = build(cache, print)
    results = {name: measure(setup, image, seconds) for name, setup in SETUPS.items()}
    floor = [statistics.median(rates) for rates in results["native macvtap"]]
    print(
        f"\nMbit/s, median of {RUNS} runs of {seconds} s (lowest to highest), ratio to the native macvtap\n"
    )
    print(f"{'':32}{'guest to peer':>28}{'peer to guest':>28}")
    for name, both in results.items():
        cells = []
        for rates, base in zip(both, floor, strict=True):
            middle = statistics.median(rates)
            cells.append(f"{middle:.0f} ({min(rates):.0f} to {max(rates):.0f}) {middle / base:.2f}")
        print(f"{name:32}{cells[0]:>28}{cells[1]:>28}")


if __name__ == "__main__":
    main()
