"""Small frames at the descriptor, a C process in place of the VMM: evertap, peers, variants for study."""

from __future__ import annotations

import fcntl
import os
import random
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from bench.part import Figure, Part
from evertap.kernel import bpf, codec, tun
from evertap.kernel.macvtap import open_macvtap
from evertap.kernel.rtnetlink import Rtnetlink
from evertap.kernel.tap import insist
from evertap.lab.trial import Trial
from evertap.lab.wires import WIRE_MAC, Lab
from evertap.model.observed import Splicing

TITLE: Final = "Small frames (60 bytes, one write or read each) at the descriptor"
MAC: Final = "52:54:00:12:34:56"
ELSEWHERE: Final = "02:00:00:00:00:02"  # behind the wire's far end, which only counts
FAR: Final = "far-1-up0"
MILLISECONDS: Final = 40
PAUSE: Final = 0.01  # seconds: for a reader to be there, and for the last frames to be counted

NATIVE, OURS, BRIDGE = "native macvtap", "evertap, backend tap", "tap on a Linux bridge"
NOTES: Final = (
    "from VMM: frames counted at the wire's far end. to VMM: frames read at the descriptor, where one "
    "processor in turns sends 64 on the wire and reads them.",
    "sender's part: the same in the sender's part of that time. A tap takes the frame out of its sender's "
    "account there, a macvtap leaves that to the reader; frames of a real card are in nobody's account.",
    "on two processors: a sender, and a reader that spins. A frame takes 0.3 µs more in some runs than in "
    "others, whatever the row, so that this ratio is the least steady.",
    "Thousands of frames a second, with the ratio to the native macvtap; medians of the rounds, in which the "
    "rows take turns in random order; a round's figure is that of its median batch of 64 frames. In "
    "brackets: lowest to highest round. The processes run before all other programs (SCHED_FIFO).",
)

_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_OFFLOADS: Final = 0x0F  # checksums, TSO for IPv4 and IPv6, ECN: what a Linux guest's driver asks for


@dataclass
class Stage:
    """A laboratory with the descriptor that a VMM would hold there."""

    lab: Lab
    descriptor: int


class Round(NamedTuple):
    """Thousands of frames a second."""

    from_vmm: float
    to_vmm: float
    to_vmm_sender: float  # in its part of the time
    to_vmm_apart: float  # by a sender and a reader


class Columns(NamedTuple):
    """The same of all rounds."""

    from_vmm: list[float]
    to_vmm: list[float]
    to_vmm_sender: list[float]
    to_vmm_apart: list[float]


Setup = Callable[[ExitStack], Stage]
Change = Callable[["Splice"], None]


def _lab(stack: ExitStack) -> Lab:
    lab = stack.enter_context(Lab())
    lab.uplink("up0")
    lab.wire.ip("link", "set", FAR, "nomaster")  # a bridge there would cost as much as all that is measured
    return lab


def _stage(stack: ExitStack, lab: Lab, descriptor: int) -> Stage:
    """The descriptor set up as QEMU does it for virtio 1."""
    stack.callback(os.close, descriptor)
    fcntl.ioctl(descriptor, _TUNSETVNETHDRSZ, struct.pack("=i", 12))
    fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _OFFLOADS)
    os.set_blocking(descriptor, False)
    return Stage(lab, descriptor)


def native_macvtap(stack: ExitStack) -> Stage:
    """As libvirt's type='direct' makes it."""
    lab = _lab(stack)
    lab.host.ip(*f"link add link up0 name mvt0 address {MAC} type macvtap mode bridge".split())
    lab.host.ip("link", "set", "mvt0", "up")
    with lab.host.enter(), Rtnetlink() as rtnetlink:
        return _stage(stack, lab, open_macvtap(_index("mvt0", rtnetlink), rtnetlink))


def bridge(stack: ExitStack) -> Stage:
    """A tap on a Linux bridge with the uplink."""
    lab = _lab(stack)
    lab.host.ip("tuntap", "add", "tap0", "mode", "tap", "vnet_hdr")
    lab.host.ip("link", "set", "tap0", "up")
    lab.bridge("br0", "up0", "tap0")
    with lab.host.enter():
        return _stage(stack, lab, tun.open_tap("tap0"))


def evertap(stack: ExitStack) -> Stage:
    """What a daemon makes, with the VMM coming last."""
    lab = _lab(stack)
    trial = stack.enter_context(Trial(lab.host))
    trial.start()
    trial.define("web0", f'mac = "{MAC}"\nuplinks = ["up0"]\nannounce = false\n')
    trial.wait("web0", "connected")
    with lab.host.enter():
        return _stage(stack, lab, tun.open_tap("web0"))


def changed(change: Change) -> Setup:
    """What a daemon has made, changed behind its back."""

    def setup(stack: ExitStack) -> Stage:
        stage = evertap(stack)
        with _splice(stage.lab) as splice:
            change(splice)
        return stage

    return setup


@dataclass
class Splice:
    """What a daemon has made, to be changed."""

    lab: Lab
    rtnetlink: Rtnetlink
    tap: int
    macvlan: int
    uplink: int
    map: int
    uplink_program: int


@contextmanager
def _splice(lab: Lab) -> Iterator[Splice]:
    with lab.host.enter(), Rtnetlink() as rtnetlink:
        tap = _index("web0", rtnetlink)
        found = bpf.find_splice(tap, rtnetlink)
        assert found is not None
        map_fd, splicing = found
        program = bpf.load_uplink_program(map_fd, tap)
        try:
            yield Splice(lab, rtnetlink, tap, splicing.target, _index("up0", rtnetlink), map_fd, program)
        finally:
            os.close(map_fd)
            os.close(program)


def _index(name: str, rtnetlink: Rtnetlink) -> int:
    return next(link.index for link in rtnetlink.dump_links() if link.name == name)


def with_default_queue(splice: Splice) -> None:
    """The queue that the kernel gives a tap by itself."""
    splice.lab.host.run("tc", "qdisc", "replace", "dev", "web0", "root", "pfifo_fast")


def with_clsact_on_the_tap(splice: Splice) -> None:
    """As on kernels before 6.6."""
    (number,) = bpf.tcx_programs(splice.tap)
    program = bpf.prog_fd_by_id(number)
    try:
        bpf.detach_tcx(splice.tap, program)
        filtering = codec.add_bpf_filter(splice.tap, program, bpf.TAP_PROGRAM)
        insist(splice.rtnetlink, [codec.add_clsact(splice.tap), filtering])
    finally:
        os.close(program)


def with_tcx_on_the_macvlan(splice: Splice) -> None:
    """It runs before clsact's filter, which is reached no more."""
    bpf.attach_tcx(splice.macvlan, splice.uplink_program)


def without_macvlan(splice: Splice) -> None:
    """Straight to the uplink, all of whose frames the guest gets."""
    bpf.attach_tcx(splice.uplink, splice.uplink_program)
    bpf.write_map(splice.map, Splicing(splice.uplink, True, MAC))


SETUPS: Final[dict[str, Setup]] = {
    NATIVE: native_macvtap,
    OURS: evertap,
    BRIDGE: bridge,
    "study: pfifo_fast on the tap": changed(with_default_queue),
}
STUDIES_OF_TCX: Final[dict[str, Setup]] = {
    "study: clsact on the tap, not tcx": changed(with_clsact_on_the_tap),
    "study: tcx on the macvlan, not clsact": changed(with_tcx_on_the_macvlan),
    "study: no macvlan, tcx on the uplink": changed(without_macvlan),
}


class Programs:
    """The compiled program, and the processors on which it runs."""

    def __init__(self, folder: Path) -> None:
        processors = sorted(os.sched_getaffinity(0))
        if len(processors) < 2:
            raise RuntimeError("small_frames takes two processors, one for the sender and one for the reader")
        self._reader, self._sender = (str(number) for number in processors[:2])
        self._program = str(folder / "small_frames")
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-o", self._program, source], check=True)

    def measure(self, stage: Stage) -> Round:
        """One round, both ways."""
        before = _counted(stage.lab)
        command = [self._program, "write", str(stage.descriptor), *self._sending(MAC, ELSEWHERE)]
        done = subprocess.run(command, pass_fds=[stage.descriptor], stdout=-1, text=True, check=True)
        frames, writing, _ = _numbers(done.stdout)
        time.sleep(PAUSE)
        share = min(1.0, (_counted(stage.lab) - before) / frames)
        sending, reading = self._turns(stage)
        return Round(
            1e6 * share / writing, 1e6 / (sending + reading), 1e6 / sending, 1e6 / self._apart(stage)
        )

    def _turns(self, stage: Stage) -> tuple[float, float]:
        """Nanoseconds a frame for the sender and for the reader, on one processor."""
        descriptor = stage.descriptor
        command = [self._program, "turns", FAR, *self._sending(WIRE_MAC, MAC), str(descriptor)]
        with stage.lab.wire.popen(command, pass_fds=[descriptor], stdout=-1, text=True) as process:
            _, sending, reading = _numbers(process.communicate()[0])
        return sending, reading

    def _apart(self, stage: Stage) -> float:
        """Nanoseconds a frame read, with a processor for the sender and one for the reader."""
        descriptor = stage.descriptor
        command = [self._program, "read", str(descriptor), self._reader]
        with subprocess.Popen(command, pass_fds=[descriptor], stdin=-1, stdout=-1, text=True) as reader:
            time.sleep(PAUSE)
            stage.lab.wire.run(self._program, "wire", FAR, *self._sending(WIRE_MAC, MAC))
            time.sleep(PAUSE)
            return _numbers(reader.communicate()[0])[1]

    def _sending(self, source: str, destination: str) -> list[str]:
        return [self._sender, str(MILLISECONDS), source, destination]


def _numbers(said: str) -> tuple[int, float, float]:
    """What the program prints; nothing, if it has failed and said so on the terminal."""
    if not said:
        raise RuntimeError("small_frames has failed")
    frames, first, second = said.split()
    if frames == "0":
        raise RuntimeError("no frame has reached the descriptor")
    return int(frames), float(first), float(second)


def _counted(lab: Lab) -> int:
    """Frames that the wire's far end has received."""
    return int(lab.wire.run("cat", f"/sys/class/net/{FAR}/statistics/rx_packets"))


def _cell(values: list[float], reference: list[float]) -> str:
    middle = statistics.median(values)
    return (
        f"{middle:.0f} ({min(values):.0f} to {max(values):.0f}), {middle / statistics.median(reference):.2f}"
    )


def run(quick: bool) -> Part:
    """Measure and judge."""
    rounds = 3 if quick else 31
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="evertap-"))
        programs = Programs(Path(folder))
        setups = SETUPS | (STUDIES_OF_TCX if bpf.tcx_supported() else {})
        stages = {name: setup(stack) for name, setup in setups.items()}
        results: dict[str, list[Round]] = {name: [] for name in stages}
        for _ in range(rounds):
            # what a row leaves in the kernel's caches is the next one's start
            for name in random.sample(list(stages), len(stages)):
                results[name].append(programs.measure(stages[name]))
    columns = {name: Columns(*map(list, zip(*each, strict=True))) for name, each in results.items()}
    names = ("", "from VMM", "to VMM", "sender's part", "on two processors")
    part = Part("small_frames", TITLE, names)
    part.rows = [
        (name, *(_cell(values, reference) for values, reference in zip(each, columns[NATIVE], strict=True)))
        for name, each in columns.items()
    ]
    for peer, from_vmm, to_vmm in ((NATIVE, 0.85, 0.8), (BRIDGE, 1.15, 1.15)):
        ours, theirs = columns[OURS], columns[peer]
        part.figures += [
            _figure("from VMM", ours.from_vmm, peer, theirs.from_vmm, from_vmm),
            _figure("to VMM", ours.to_vmm, peer, theirs.to_vmm, to_vmm),
        ]
    part.notes += NOTES
    return part


def _figure(way: str, ours: list[float], peer: str, theirs: list[float], least: float) -> Figure:
    value, reference = statistics.median(ours), statistics.median(theirs)
    goal = f"at least {least:g}"
    return Figure(f"small frames {way}", value, "kpps", peer, reference, goal, value / reference >= least)
