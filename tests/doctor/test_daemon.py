"""The daemon's surroundings: its folders, its socket, its unit."""

from __future__ import annotations

from pathlib import Path

from evertap.api import SOCKET
from evertap.doctor import daemon
from evertap.doctor.check import Check
from evertap.doctor.host import Answer
from tests.api.fake import FakeService, served, view
from tests.doctor.pretended import PretendedHost, only


def _checks(host: PretendedHost, folder: Path) -> list[Check]:
    return list(daemon.checks(host, folder / "etc", folder / "run"))


def test_a_folder_that_others_can_change(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    assert "folder" not in [check.name for check in _checks(PretendedHost(tmp_path), tmp_path)]
    folder.chmod(0o777)
    check = only(_checks(PretendedHost(tmp_path), tmp_path), "folder")
    assert check.result == "broken"
    assert check.remedy.endswith(f"chmod go-w {folder}")


def test_a_failed_nic_and_a_socket_of_few(tmp_path: Path) -> None:
    fake = FakeService(view("web0"), view("web1", state="failed", uplink=None, reason="EPERM"))
    with served(fake, tmp_path / "run"):
        (tmp_path / "run" / SOCKET).chmod(0o600)
        checks = _checks(PretendedHost(tmp_path), tmp_path)
    assert only(checks, "daemon").result == "ok"
    assert only(checks, "NIC") == Check("NIC", "warning", "web1 has failed: EPERM", "evertap show web1")
    assert only(checks, "socket").result == "warning"


def test_a_daemon_that_is_not_there(tmp_path: Path) -> None:
    check = only(_checks(PretendedHost(tmp_path), tmp_path), "daemon")
    assert (check.result, check.remedy) == ("warning", "evertap daemon")
    assert check.found.count("evertap daemon") == 1


def test_the_unit(tmp_path: Path) -> None:
    host = PretendedHost(tmp_path)
    assert "unit" not in [check.name for check in _checks(host, tmp_path)]
    host.path("/run/systemd/system").mkdir(parents=True)
    assert only(_checks(host, tmp_path), "unit").remedy == "systemctl enable --now evertap.service"
    host.answers["systemctl"] = Answer(0, "enabled")
    assert only(_checks(host, tmp_path), "unit").result == "ok"
    assert only(_checks(host, tmp_path), "daemon").remedy == "systemctl start evertap.service"
