"""A QEMU that hangs, lies, floods or breaks off harms its own NICs only, and it is said what is wrong."""

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evertap.model.errors import ActionError
from evertap.model.vmm import host_netdev, qemu_id, uplink_netdev, uplink_port
from tests.support.nics import nic
from tests.vmm.fake_qmp import COMMANDS, GREETING, FakeQmp, Peer, QemuError, Received
from tests.vmm.following import QUICK, Following, follow, until

Greet = Callable[[Peer], None]
ROOT = Path(__file__).parents[2]


def endless(peer: Peer) -> None:
    """A line without an end."""
    while True:
        peer.send_raw(b"x" * 65536)


def nested(peer: Peer) -> None:
    peer.send_raw(b"[" * 500_000 + b"\r\n")


def break_off(peer: Peer) -> None:
    peer.send_raw(b'{"QMP": {')
    peer.hang_up()


GREETINGS: dict[str, tuple[Greet, str]] = {
    "silence": (lambda peer: None, "no greeting from"),
    "garbage": (lambda peer: peer.send_raw(b"\x1b[31m SSH-2.0 \xff\r\n"), "does not speak QMP"),
    "another kind of JSON": (lambda peer: peer.send_raw(b'[1, "QMP"]\r\n'), "does not speak QMP"),
    "another greeting": (lambda peer: peer.send({"QMP": {"version": 1}}), "does not speak QMP"),
    "deep nesting": (nested, "does not speak QMP"),
    "an endless line": (endless, "messages of more than 1048576 bytes"),
    "the end": (Peer.hang_up, "QEMU has ended"),
    "half a greeting": (break_off, "QEMU has ended"),
}


@pytest.mark.parametrize("kind", GREETINGS)
def test_what_comes_instead_of_a_greeting(tmp_path: Path, kind: str) -> None:
    greet, words = GREETINGS[kind]

    async def body(following: Following) -> None:
        with FakeQmp(tmp_path / "vm.qmp") as fake:
            fake.greet = greet
            following.vmms.follow({fake.path})
            reason = await following.not_running(fake.path, words)
            assert reason.isprintable()
            assert len(reason) < 400
            with pytest.raises(ActionError, match="QEMU of NIC web0: "):
                await following.vmms.set_link(fake.path, "web0", True)
            fake.greet = lambda peer: peer.send(GREETING)
            if fake.peer is not None:
                fake.peer.hang_up()
            await following.running(fake.path)

    follow(body, QUICK)


def test_the_pause_between_tries_doubles(tmp_path: Path) -> None:
    async def body(following: Following) -> None:
        with FakeQmp(tmp_path / "vm.qmp") as fake:
            times: list[float] = []

            def greet(peer: Peer) -> None:
                times.append(time.monotonic())
                peer.hang_up()

            fake.greet = greet
            following.vmms.follow({fake.path})
            await until(lambda: len(times) == 5)
            pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
            assert pauses[0] < 0.19
            assert pauses[1] > 0.19
            assert pauses[2] > 0.39
            assert 0.39 < pauses[3] < 0.75

    follow(body, QUICK)


def hang_up(peer: Peer, received: Received) -> None:
    peer.send_raw(b'{"return": {')
    peer.hang_up()


def nonsense(peer: Peer, received: Received) -> None:
    peer.send_raw(b"nonsense\r\n")


def odd_id(peer: Peer, received: Received) -> None:
    peer.send({"return": {}, "id": ["x"]})


def silence(peer: Peer, received: Received) -> None:
    return


MISBEHAVIOURS = {
    "an error": (None, r"COMMAND.*: no\?such luck"),
    "nothing": (silence, r"does not answer within 0.4 s"),
    "half an answer": (hang_up, r"QEMU has ended"),
    "nonsense": (nonsense, r"QEMU has ended|does not speak QMP"),
    "an answer to nobody": (odd_id, r"QEMU has ended|does not speak QMP"),
}
STEPS = {
    "plug": ("getfd", "netdev_add"),
    "unplug": ("netdev_del",),
    "set_link": ("set_link",),
    "announce": ("announce-self",),
    "attach": ("getfd", "netdev_add", "device_add"),
    "detach": ("device_del", "netdev_del"),
}


async def act(following: Following, path: str, verb: str) -> None:
    vmms, web0 = following.vmms, nic("web0")
    descriptor = os.open("/dev/null", os.O_RDONLY)
    try:
        match verb:
            case "plug":
                await vmms.plug(path, "web0", 7, descriptor)
            case "unplug":
                await vmms.unplug(path, "web0", 7)
            case "set_link":
                await vmms.set_link(path, "web0", False)
            case "announce":
                await vmms.announce(path, "web0")
            case "attach":
                await vmms.attach(path, web0, [descriptor])
            case "detach":
                await vmms.detach(path, web0)
    finally:
        os.close(descriptor)


def furnish(fake: FakeQmp, verb: str) -> None:
    """What the verb expects to find."""
    if verb == "unplug":
        fake.netdevs = {
            uplink_port("web0", 7): {"type": "hubport"},
            uplink_netdev("web0", 7): {"type": "tap"},
        }
    if verb == "detach":
        fake.devices = {qemu_id("web0"): {}}
        fake.netdevs = {host_netdev("web0"): {"type": "tap"}}


def leaving(fake: FakeQmp) -> Callable[[Peer, Received], bool]:
    """The guest lets go at once: the event comes before the answer."""

    def go(peer: Peer, received: Received) -> bool:
        if received.command == "device_del" and fake.devices.pop(received.arguments["id"], None) is not None:
            fake.event("DEVICE_DELETED", path="/machine/peripheral/x/virtio-backend")
            fake.event("DEVICE_DELETED", device=received.arguments["id"], path="/machine/peripheral/x")
        return False

    return go


@pytest.mark.parametrize("how", MISBEHAVIOURS)
@pytest.mark.parametrize(
    ("verb", "command"), [(verb, step) for verb, steps in STEPS.items() for step in steps]
)
def test_each_command_in_turn_fails_in_each_way(tmp_path: Path, verb: str, command: str, how: str) -> None:
    misbehave, words = MISBEHAVIOURS[how]

    async def body(following: Following) -> None:
        with FakeQmp(tmp_path / "vm.qmp") as fake:
            furnish(fake, verb)
            before = set(fake.netdevs), set(fake.devices)
            following.vmms.follow({fake.path})
            await following.running(fake.path)
            well = leaving(fake)

            def go(peer: Peer, received: Received) -> bool:
                if received.command != command:
                    return well(peer, received)
                if misbehave is None:
                    raise QemuError("GenericError", "no\x1bsuch\nluck")
                misbehave(peer, received)
                return True

            fake.misbehave = go
            with pytest.raises(ActionError, match=r"^QEMU of NIC web0: ") as caught:
                await act(following, fake.path, verb)
            assert caught.match(words.replace("COMMAND", command))
            fake.misbehave = well
            if misbehave is not None:
                await following.not_running(fake.path, "")
            await following.running(fake.path)
            if misbehave is None:
                # Nothing is half done, and QEMU's descriptors are closed.
                if verb in ("plug", "attach"):
                    assert (set(fake.netdevs), set(fake.devices)) == before
                    assert not fake.files
                assert following.vmm(fake.path).parts == fake.netdevs.keys() | fake.devices.keys()
            # And afterwards it works, whatever was left by what broke off.
            await until(lambda: following.vmm(fake.path).parts == fake.netdevs.keys() | fake.devices.keys())
            await act(following, fake.path, verb)
            assert following.vmm(fake.path).parts == fake.netdevs.keys() | fake.devices.keys()
            assert len(fake.netdevs) == {"plug": 2, "attach": 1}.get(verb, 0)

    follow(body, QUICK)


@pytest.mark.parametrize(
    "command", ["query-version", "query-commands", "human-monitor-command", "query-rx-filter"]
)
@pytest.mark.parametrize("answer", [QemuError("GenericError", "no"), {}, [1], "x", 1])
def test_odd_answers_to_our_questions(tmp_path: Path, command: str, answer: object) -> None:
    async def body(following: Following) -> None:
        with FakeQmp(tmp_path / "vm.qmp") as fake:
            fake.devices = {"evertap-web0": {}}
            fake.answers[command] = answer
            following.vmms.follow({fake.path})
            if command == "human-monitor-command" and answer != "x":
                refused = isinstance(answer, QemuError)
                await following.not_running(
                    fake.path, f"{command}: no" if refused else "info network: cannot be"
                )
                del fake.answers[command]
            await following.running(fake.path)
            await act(following, fake.path, "set_link")

    follow(body, QUICK)


def test_a_command_that_this_qemu_lacks_is_not_tried(tmp_path: Path) -> None:
    async def body(following: Following) -> None:
        with FakeQmp(tmp_path / "vm.qmp") as fake:
            fake.commands = tuple(name for name in COMMANDS if name != "announce-self")
            following.vmms.follow({fake.path})
            await following.running(fake.path)
            with pytest.raises(ActionError, match=r"announce-self: this QEMU \(7\.2\.22\) does not have it"):
                await following.vmms.announce(fake.path, "web0")
            assert "announce-self" not in fake.names()

    follow(body, QUICK)


def test_a_qemu_that_hangs_recovers(tmp_path: Path) -> None:
    async def body(following: Following) -> None:
        with FakeQmp(tmp_path / "vm.qmp") as fake:
            following.vmms.follow({fake.path})
            await following.running(fake.path)
            fake.freeze()
            calls = [following.vmms.set_link(fake.path, "web0", True) for _ in range(20)]
            begun = time.monotonic()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert time.monotonic() - begun < 2 * QUICK.answer, "they do not wait one after the other"
            assert all(isinstance(result, ActionError) for result in results)
            assert not following.vmm(fake.path).gone
            await following.not_running(fake.path, "no greeting from")
            history = [vmm.reason for _, vmm in following.history]
            assert "QEMU does not answer within 0.4 s (set_link)" in history
            await asyncio.sleep(1)
            fake.thaw()
            begun = time.monotonic()
            await following.running(fake.path)
            assert time.monotonic() - begun < 1, "the connection waits in its queue"
            await following.vmms.set_link(fake.path, "web0", True)

    follow(body, QUICK)


async def latency(following: Following, path: str, seconds: float) -> list[float]:
    """How long commands to a QEMU take, in ms, sorted."""
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        begun = time.perf_counter()
        await following.vmms.set_link(path, "web0", True)
        times.append((time.perf_counter() - begun) * 1000)
        await asyncio.sleep(0.002)
    return sorted(times)


def test_a_flood_of_events_takes_no_memory(tmp_path: Path) -> None:
    # In a process of its own: beside all that a test run holds, tracing memory makes a trickle of the flood.
    done = subprocess.run(
        [sys.executable, "-m", "tests.vmm.flooded", tmp_path / "vm.qmp"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_flood_of_events_takes_no_time_from_other_qemus(tmp_path: Path) -> None:
    good, bad = str(tmp_path / "good"), str(tmp_path / "bad")

    async def body(following: Following) -> None:
        following.vmms.follow({good, bad})
        await following.running(good)
        await following.running(bad)
        calm = await latency(following, good, 0.5)
        # This call it answers by the flood, in a process of its own as QEMUs are.
        attack = asyncio.create_task(following.vmms.announce(bad, "web0"))
        attacked = await latency(following, good, 1)
        with pytest.raises(ActionError, match="sends more than 1000 messages a second"):
            await attack
        for name, times in (("calm", calm), ("attacked", attacked)):
            print(
                f"{name}: median {times[len(times) // 2]:.2f} ms, worst {times[-1]:.2f} ms, of {len(times)}"
            )
        assert attacked[len(attacked) // 2] < 20
        assert attacked[-1] < 200
        assert following.vmm(good).running

    with subprocess.Popen([sys.executable, "-m", "tests.vmm.fake_qmp", good, bad], cwd=ROOT) as servers:
        try:
            follow(body, debug=False)
        finally:
            servers.kill()


def test_a_filter_is_read_once_for_each_event_and_not_without_pause(tmp_path: Path) -> None:
    async def body(following: Following) -> None:
        with FakeQmp(tmp_path / "vm.qmp") as fake:
            fake.devices = {"evertap-web0": {}}
            following.vmms.follow({fake.path})
            await until(lambda: len(following.filters) == 1)
            path, device, found = following.filters[0]
            assert (path, device) == (fake.path, "evertap-web0")
            assert found.multicast == {"33:33:00:00:00:01", "01:00:5e:00:00:01"}
            for _ in range(50):
                fake.event("NIC_RX_FILTER_CHANGED", name="evertap-web0", path="/x")
            for name in ("evertap-other", "theirs", 7, None):
                fake.event("NIC_RX_FILTER_CHANGED", name=name)
            await asyncio.sleep(0.3)
            assert 2 <= len(following.filters) <= 4
            assert {device for _, device, _ in following.filters} == {"evertap-web0"}
            # One that somebody else has attached.
            fake.devices["evertap-web1"] = {}
            fake.event("NIC_RX_FILTER_CHANGED", name="evertap-web1")
            await until(lambda: following.filters[-1][1] == "evertap-web1")
            assert following.vmm(fake.path).parts == {"evertap-web0", "evertap-web1"}

    follow(body, QUICK)
