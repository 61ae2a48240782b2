"""A real QEMU, without a guest's help: its processors stand still (-S), so it is there within 0.2 s."""

import asyncio
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from evertap.kernel import tun
from evertap.lab.netns import Namespace
from evertap.lab.wires import Lab
from evertap.model.arguments import qemu_arguments, qmp_arguments
from evertap.model.errors import ActionError
from evertap.model.vmm import RxFilter, card_port, host_netdev, qemu_id, sink_port, uplink_netdev, uplink_port
from evertap.vmm.limits import Limits
from tests.support.nics import nic
from tests.vmm.following import Following, follow, until
from tests.vmm.macvtaps import open_macvtap

pytestmark = pytest.mark.timeout(120)

ROOT_PORT = ("-device", "pcie-root-port,id=rp1")
HUB = {card_port("web0"), sink_port("web0")}


@contextmanager
def qemu(
    namespace: Namespace, path: Path, arguments: Sequence[str] = ()
) -> "Iterator[subprocess.Popen[bytes]]":
    command = ["qemu-system-x86_64", "-accel", "tcg", "-M", "q35", "-m", "32", "-display", "none"]
    command += ["-nodefaults", "-S", *qmp_arguments(str(path)), *arguments]
    process: subprocess.Popen[bytes] = namespace.popen(command, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def web0(queues: int = 1) -> "list[str]":
    return qemu_arguments(nic("web0", backend="macvtap", queues=queues), vhost=False)


def qemus_descriptors(process: "subprocess.Popen[bytes]") -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


def test_parts_are_read_and_macvtaps_plugged_without_a_leak(lab: Lab, tmp_path: Path) -> None:
    path = str(tmp_path / "vm.qmp")
    lab.uplink("up0")

    async def body(following: Following) -> None:
        following.vmms.follow({path})
        with (
            qemu(lab.host, Path(path), web0()) as process,
            open_macvtap(lab.host, "up0", "mvt0") as (index, tap),
        ):
            vmm = await following.running(path)
            assert vmm.parts == {qemu_id("web0"), *HUB}
            before = qemus_descriptors(process)
            plugs, unplugs = [], []
            for _ in range(50):
                begun = time.perf_counter()
                await following.vmms.plug(path, "web0", index, tap)
                plugs.append(time.perf_counter() - begun)
                assert following.vmm(path).parts == vmm.parts | {
                    *(uplink_netdev("web0", index), uplink_port("web0", index))
                }
                begun = time.perf_counter()
                await following.vmms.unplug(path, "web0", index)
                unplugs.append(time.perf_counter() - begun)
                assert following.vmm(path).parts == vmm.parts
            assert qemus_descriptors(process) == before
            # A second look, by a new connection, sees the same.
            following.vmms.follow(set())
            await until(lambda: not asyncio.all_tasks() or True)
            following.known.clear()
            following.vmms.follow({path})
            assert (await following.running(path)).parts == vmm.parts
            print(
                f"\nplug: median {statistics.median(plugs) * 1000:.2f} ms, worst {max(plugs) * 1000:.2f} ms"
            )
            print(f"unplug: median {statistics.median(unplugs) * 1000:.2f} ms")

    follow(body, debug=False)


def test_plugging_twice_is_refused_and_qemu_lives(lab: Lab, tmp_path: Path) -> None:
    """QEMU would abort: a netdev can be peered once."""
    path = str(tmp_path / "vm.qmp")
    lab.uplink("up0")

    async def body(following: Following) -> None:
        following.vmms.follow({path})
        with (
            qemu(lab.host, Path(path), web0()) as process,
            open_macvtap(lab.host, "up0", "mvt0") as (index, tap),
        ):
            await following.running(path)
            await following.vmms.plug(path, "web0", index, tap)
            before = qemus_descriptors(process)
            with pytest.raises(ActionError, match="it is on the NIC's hub already"):
                await following.vmms.plug(path, "web0", index, tap)
            # Even if we did not know of it.
            monitor = following.vmms._following[path][0]
            assert monitor.session is not None
            monitor.session.netdevs.clear()
            with pytest.raises(ActionError, match=r"netdev_add evertap-web0-up\d+: Duplicate ID"):
                await following.vmms.plug(path, "web0", index, tap)
            assert process.poll() is None
            assert qemus_descriptors(process) == before, "the second descriptor was given back"
            assert uplink_port("web0", index) in following.vmm(path).parts, (
                "what was there before was not undone"
            )

    follow(body)


def test_a_descriptor_that_is_no_tap_is_refused_and_given_back(namespace: Namespace, tmp_path: Path) -> None:
    path = str(tmp_path / "vm.qmp")

    async def body(following: Following) -> None:
        following.vmms.follow({path})
        with qemu(namespace, Path(path), web0()) as process, (tmp_path / "file").open("w") as file:
            vmm = await following.running(path)
            before = qemus_descriptors(process)
            with pytest.raises(
                ActionError, match=r"QEMU of NIC web0: netdev_add evertap-web0-up7: .*TUNGETIFF"
            ):
                await following.vmms.plug(path, "web0", 7, file.fileno())
            assert following.vmm(path) == vmm
            assert qemus_descriptors(process) == before

    follow(body)


def test_attach_needs_a_free_root_port_on_q35(lab: Lab, tmp_path: Path) -> None:
    path = str(tmp_path / "vm.qmp")

    async def body(following: Following) -> None:
        following.vmms.follow({path})
        with qemu(lab.host, Path(path), ROOT_PORT):
            await following.running(path)
            begun = time.perf_counter()
            await following.vmms.attach(path, nic("web0", backend="macvtap"), [])
            print(f"\nattach: {(time.perf_counter() - begun) * 1000:.1f} ms")
            assert following.vmm(path).parts == {qemu_id("web0"), *HUB}
            words = r"Bus 'pcie.0' does not support hotplugging.* free.*-device pcie-root-port"
            with pytest.raises(ActionError, match=words):
                await following.vmms.attach(path, nic("web1", backend="macvtap"), [])
            assert following.vmm(path).parts == {qemu_id("web0"), *HUB}
            with pytest.raises(ActionError, match="has a device of that id already"):
                await following.vmms.attach(path, nic("web0", backend="macvtap"), [])
            # Nobody answers here: the guest does not run.
            for _ in range(2):
                with pytest.raises(ActionError, match="the guest has not let go of it"):
                    await following.vmms.detach(path, nic("web0"))
            assert following.vmm(path).parts == {qemu_id("web0"), *HUB}

    follow(body, Limits(unplug=0.3))


def test_attach_without_a_root_port_leaves_nothing(lab: Lab, tmp_path: Path) -> None:
    path = str(tmp_path / "vm.qmp")

    async def body(following: Following) -> None:
        following.vmms.follow({path})
        with lab.host.enter():
            taps = [tun.create_tap("web0", queues=2)]
            tun.persist(taps[0])
            taps.append(tun.open_tap("web0", queues=2))
        with qemu(lab.host, Path(path)) as process:
            vmm = await following.running(path)
            before = qemus_descriptors(process)
            with pytest.raises(ActionError, match="no PCI Express port"):
                await following.vmms.attach(path, nic("web0", queues=2), taps)
            assert following.vmm(path) == vmm
            assert qemus_descriptors(process) == before
        for tap in taps:
            os.close(tap)

    follow(body)


def test_an_id_that_another_kind_of_device_has(namespace: Namespace, tmp_path: Path) -> None:
    path = str(tmp_path / "vm.qmp")

    async def body(following: Following) -> None:
        following.vmms.follow({path})
        with qemu(namespace, Path(path), [*ROOT_PORT, "-device", "virtio-rng-pci,id=evertap-web0"]):
            vmm = await following.running(path)
            with pytest.raises(ActionError, match="device_add evertap-web0: Duplicate device ID"):
                await following.vmms.attach(path, nic("web0"), [])
            assert following.vmm(path) == vmm

    follow(body)


def test_attach_on_a_tap_with_two_queues(lab: Lab, tmp_path: Path) -> None:
    path = str(tmp_path / "vm.qmp")

    async def body(following: Following) -> None:
        following.vmms.follow({path})
        with lab.host.enter():
            taps = [tun.create_tap("web0", queues=2)]
            tun.persist(taps[0])
            taps.append(tun.open_tap("web0", queues=2))
        with qemu(lab.host, Path(path), ROOT_PORT):
            await following.running(path)
            await following.vmms.attach(path, nic("web0", queues=2, mtu=1400), taps)
            assert following.vmm(path).parts == {qemu_id("web0"), host_netdev("web0")}
            for tap in taps:
                os.close(tap)
            # They are QEMU's now.
            assert lab.host.ip("tuntap", "list").startswith("web0: tap")
            with lab.host.enter():
                os.close(tun.open_tap("web0", queues=2))

    follow(body)


def test_a_vhost_net_that_does_not_work_is_done_without(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU would abort if it were asked for vhost=on alone."""
    path = str(tmp_path / "vm.qmp")
    monkeypatch.setattr("evertap.vmm.card.VHOST_NET", "/dev/null")

    async def body(following: Following) -> None:
        following.vmms._vhost = True
        following.vmms.follow({path})
        with lab.host.enter():
            tap = tun.create_tap("web0")
        with qemu(lab.host, Path(path), ROOT_PORT) as process:
            await following.running(path)
            before = qemus_descriptors(process)
            await following.vmms.attach(path, nic("web0"), [tap])
            assert following.vmm(path).parts == {qemu_id("web0"), host_netdev("web0")}
            assert process.poll() is None
            assert qemus_descriptors(process) == before + 1
        os.close(tap)

    follow(body)


def test_link_and_announcements(namespace: Namespace, tmp_path: Path) -> None:
    path = str(tmp_path / "vm.qmp")

    async def body(following: Following) -> None:
        following.vmms.follow({path})
        with qemu(namespace, Path(path), web0()):
            await following.running(path)
            await following.vmms.set_link(path, "web0", False)
            await following.vmms.set_link(path, "web0", True)
            await following.vmms.announce(path, "web0")
            with pytest.raises(ActionError, match="set_link evertap-web1: Device 'evertap-web1' not found"):
                await following.vmms.set_link(path, "web1", False)
            await until(lambda: len(following.filters) == 1)
            assert following.filters[0][1:] == ("evertap-web0", RxFilter(nic("web0").mac, all_multicast=True))

    follow(body)


def test_qemu_killed_and_started_again(namespace: Namespace, tmp_path: Path) -> None:
    path = str(tmp_path / "vm.qmp")

    async def body(following: Following) -> None:
        following.vmms.follow({path})
        times = []
        for number in range(3):
            with qemu(namespace, Path(path), web0()) as process:
                await following.running(path)
                process.send_signal(signal.SIGKILL if number else signal.SIGTERM)
                begun = time.monotonic()
                await following.not_running(path, "QEMU has ended")
                times.append(time.monotonic() - begun)
                assert following.vmm(path).gone
        print(f"\nthe end of QEMU is known after {max(times) * 1000:.0f} ms at most")

    follow(body)


def test_a_stopped_qemu_is_said_not_to_answer_and_recovers(namespace: Namespace, tmp_path: Path) -> None:
    path = str(tmp_path / "vm.qmp")

    async def body(following: Following) -> None:
        following.vmms.follow({path})
        with qemu(namespace, Path(path), web0()) as process:
            await following.running(path)
            process.send_signal(signal.SIGSTOP)
            with pytest.raises(
                ActionError, match=r"set_link evertap-web0: QEMU does not answer within 0.5 s"
            ):
                await following.vmms.set_link(path, "web0", False)
            await following.not_running(path, "no greeting")
            assert not following.vmm(path).gone
            process.send_signal(signal.SIGCONT)
            begun = time.monotonic()
            await following.running(path)
            print(f"\nconnected again after {(time.monotonic() - begun) * 1000:.0f} ms")
            await following.vmms.set_link(path, "web0", False)

    follow(body, Limits(answer=0.5, backoff=0.2))


def test_a_qmp_socket_that_somebody_else_holds(namespace: Namespace, tmp_path: Path) -> None:
    path = tmp_path / "vm.qmp"

    async def body(following: Following) -> None:
        with qemu(namespace, path, web0()):
            await until(path.exists)
            await asyncio.sleep(0.2)
            _, other = await asyncio.open_unix_connection(path)
            following.vmms.follow({str(path)})
            await following.not_running(
                str(path), "another program holds this QMP socket, which serves one client"
            )
            other.close()
            await other.wait_closed()
            await following.running(str(path))

    follow(body, Limits(answer=0.3))
