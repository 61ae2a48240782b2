"""`evertap run`: what the command behind it gets, and what happens when it cannot be started."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from evertap.model.arguments import qmp_arguments, qmp_sockets
from evertap.model.errors import EvertapError
from tests.api.fake import FakeService, view
from tests.cli.conftest import Shell

# Stands for QEMU and tells what it finds; the descriptors by the names that the fake service gives them.
PROBE = """
import json, os, sys
links = {}
for fd in range(1000):
    try:
        links[fd] = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        pass
taps = {fd: link.split(":")[1].split(" (")[0] for fd, link in links.items() if "memfd" in link}
print(json.dumps({"pid": os.getpid(), "argv": sys.argv[1:], "taps": taps}))
"""
QEMU = (sys.executable, "-c", PROBE, "-m", "256")


def test_qemu_takes_its_place_with_the_arguments_and_descriptors_of_all_nics(
    evertap: Shell, service: FakeService
) -> None:
    service.queues = 2
    with evertap.start("run", "--nic", "web0", "--nic", "web1", "--nic", "web0", "--", *QEMU) as process:
        out, err = process.communicate(timeout=30)
    told = json.loads(out)
    assert (process.returncode, err, told["pid"]) == (0, "", process.pid)
    ((_, names, descriptors, _),) = [call for call in service.calls if call[0] == "arguments"]
    assert names == ["web0", "web1"]
    wanted = {str(fd): f"{name} {place}" for name in names for place, fd in enumerate(descriptors[name])}
    assert told["taps"] == wanted
    assert len(wanted) == 4
    netdevs = [("-netdev", f"tap,id={name},x={descriptors[name]}") for name in names]
    assert told["argv"] == ["-m", "256", *netdevs[0], *netdevs[1]]


def test_a_nic_without_a_tap_needs_no_descriptors(evertap: Shell, service: FakeService) -> None:
    service.known["web0"] = view("web0", backend="macvtap", tap=None)
    service.added = qmp_arguments(f"{evertap.folder}/web0.qmp")
    code, out, _ = evertap("run", "--nic", "web0", "--", *QEMU)
    assert code == 0
    assert json.loads(out)["argv"][4:] == service.added
    assert ("open_tap", "web0") not in service.calls


def test_vhost_is_only_for_those_who_may_open_it(evertap: Shell, service: FakeService) -> None:
    assert evertap("run", "--nic", "web0", "--", "true") == (0, "", "")
    ((*_, vhost),) = [call for call in service.calls if call[0] == "arguments"]
    assert vhost == os.access("/dev/vhost-net", os.R_OK | os.W_OK)


def test_without_nics_no_daemon_is_asked(evertap: Shell) -> None:
    assert evertap("run", "--", "echo", "hello") == (0, "hello\n", "")


def test_options_of_ours_stand_before_the_command_only(evertap: Shell) -> None:
    assert evertap("run", "echo", "--nic", "x", "--json", "--help") == (0, "--nic x --json --help\n", "")
    assert evertap("run", "--", "echo", "--", "--json") == (0, "-- --json\n", "")


@pytest.mark.parametrize(("end", "code"), [("exit 7", 7), ("kill -SEGV $$", -11), ("kill -TERM $$", -15)])
def test_the_end_is_qemus_own(evertap: Shell, end: str, code: int) -> None:
    assert evertap("run", "--", "sh", "-c", f"echo bye >&2; {end}") == (code, "", "bye\n")


def test_signals_are_to_qemu_what_they_are_without_evertap(evertap: Shell) -> None:
    masks = ["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"]
    # What the tests themselves were started with stays as it is.
    without = subprocess.run(masks, capture_output=True, text=True, check=True).stdout
    assert evertap("run", "--", *masks)[1] == without


# What keeps it from starting


@pytest.mark.parametrize(
    ("program", "reason"),
    [("qemu-system-zx81", "No such file or directory"), ("/etc/passwd", "Permission denied")],
)
def test_a_command_that_cannot_be_started_is_1(
    evertap: Shell, service: FakeService, program: str, reason: str
) -> None:
    message = f"cannot start {program}: {reason}. Is it installed?"
    assert evertap("run", "--nic", "web0", "--", program, "-S") == (1, "", f"evertap: {message}\n")
    code, _, err = evertap("run", "--json", "--nic", "web0", "--", program)
    assert (code, json.loads(err)) == (1, {"error": "failed", "message": message})
    # Behind -- it is QEMU's.
    assert evertap("run", "--", program, "--json")[2] == f"evertap: {message}\n"


def test_nothing_behind_the_dashes_is_2(evertap: Shell, service: FakeService) -> None:
    code, out, err = evertap("run", "--nic", "web0", "--")
    assert (code, out) == (2, "")
    assert "Missing argument '-- QEMU...'" in err
    assert service.calls == []


def test_unknown_nic_is_4_and_no_daemon_3(evertap: Shell, service: FakeService) -> None:
    code, out, err = evertap("run", "--nic", "web0", "--nic", "web7", "--", "echo")
    assert (code, out) == (4, "")
    assert 'no NIC named "web7"' in err
    assert ("open_tap", "web0") not in service.calls
    evertap.runtime = evertap.folder / "nowhere"
    code, out, err = evertap("run", "--nic", "web0", "--", "echo")
    assert (code, out) == (3, "")
    assert "no evertap daemon is reachable" in err


def test_a_tap_that_cannot_be_had_is_1(
    evertap: Shell, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(_: str) -> list[int]:
        raise EvertapError("open tap web0: Device or resource busy")

    monkeypatch.setattr(service, "open_tap", busy)
    code, out, err = evertap("run", "--nic", "web0", "--", "echo")
    assert (code, out, err) == (1, "", "evertap: open tap web0: Device or resource busy\n")


def test_a_qmp_socket_that_qemu_could_not_make_is_1(evertap: Shell, service: FakeService) -> None:
    service.added = qmp_arguments("/nowhere/web0.qmp")
    assert evertap("run", "--nic", "web0", "--", "echo") == (
        1,
        "",
        "evertap: QEMU has to make the QMP socket /nowhere/web0.qmp for evertap, but there is no folder "
        '/nowhere: name a path where you may in the NIC\'s definition, [vm] qmp = "/path"\n',
    )


@pytest.mark.parametrize("path", ["/run/a.qmp", "/a,b,,c/d", "/a\nb", "/x,server=on,wait=off", "/ü\udcff"])
def test_qmp_sockets_are_found_among_the_arguments(path: str) -> None:
    others = ["-chardev", "socket,id=mine,path=/mine,server=on,wait=off", "-m", "256"]
    assert qmp_sockets([*others, *qmp_arguments(path), *qmp_arguments("/b")]) == [path, "/b"]
