"""QEMU and libvirt, as they answer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from evertap.doctor import vmms
from evertap.doctor.host import Answer
from tests.doctor.pretended import PretendedHost, only


def _qemu(host: PretendedHost, monkeypatch: pytest.MonkeyPatch, text: str) -> str:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/qemu")
    host.answers["/usr/bin/qemu"] = Answer(0, text)
    return only(list(vmms.checks(host)), "QEMU").result


def test_qemu_by_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = PretendedHost(tmp_path)
    assert _qemu(host, monkeypatch, "QEMU emulator version 7.2.22 (Debian 1:7.2)") == "ok"
    assert _qemu(host, monkeypatch, "QEMU emulator version 6.2.0") == "warning"
    assert _qemu(host, monkeypatch, "no idea") == "warning"


def test_no_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert only(list(vmms.checks(PretendedHost(tmp_path))), "QEMU").result == "note"


@pytest.mark.parametrize(
    ("answer", "running", "result"),
    [
        (Answer(127, ""), (), "ok"),
        (Answer(1, "", "error: Failed to connect"), (), "note"),
        (Answer(1, "", "error: Failed to connect"), ("libvirtd",), "warning"),
        (Answer(0, "Running against daemon: 9.0.0"), ("libvirtd",), "ok"),
        (Answer(0, "Running against daemon: 8.0.0"), ("virtqemud",), "warning"),
        (Answer(127, ""), ("libvirtd",), "note"),
    ],
)
def test_libvirt(tmp_path: Path, answer: Answer, running: tuple[str, ...], result: str) -> None:
    host = PretendedHost(tmp_path, *running)
    host.answers["virsh"] = answer
    assert only(list(vmms.checks(host)), "libvirt").result == result


def test_the_hook(tmp_path: Path) -> None:
    host = PretendedHost(tmp_path, "libvirtd")
    assert only(list(vmms.checks(host)), "libvirt's hook").result == "note"
    host.write("/etc/libvirt/hooks/qemu.d/evertap", "#!/bin/sh\n# installed by evertap libvirt-setup\n")
    assert only(list(vmms.checks(host)), "libvirt's hook").result == "ok"
