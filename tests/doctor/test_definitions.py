"""Definitions that are refused, and uplinks that are nowhere."""

from __future__ import annotations

from pathlib import Path

from evertap.doctor import definitions
from evertap.model.links import Link
from tests.doctor.pretended import PretendedHost

_GOOD = 'mac = "52:54:00:00:00:0{}"\nuplinks = ["eth0", "gone0"]\n'


def test_each_refused_file_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "nics.d"
    folder.mkdir()
    (folder / "good.toml").write_text(_GOOD.format(1))
    (folder / "bad.toml").write_text(_GOOD.format(2) + 'backend = "tin"\n')
    (folder / "twin.toml").write_text(_GOOD.format(1))
    (folder / "half.toml").write_text("mac = ")
    host = PretendedHost(tmp_path)
    host.links = [Link(2, "eth0")]
    before = sorted(tmp_path.rglob("*"))
    checks = list(definitions.checks(host, definitions.read(tmp_path)))
    told = {Path(check.found.split()[0]).name: check for check in checks if check.result == "broken"}
    assert told.keys() == {"bad.toml", "half.toml", "twin.toml"}
    assert "backend" in told["bad.toml"].found
    assert [check.found for check in checks if check.result == "ok"] == [f"1 good definition in {folder}"]
    assert [check.found for check in checks if check.name == "uplink"] == [
        "NIC good: no interface is gone0 now"
    ]
    assert sorted(tmp_path.rglob("*")) == before


def test_no_folder_is_no_problem(tmp_path: Path) -> None:
    checks = list(definitions.checks(PretendedHost(tmp_path), definitions.read(tmp_path)))
    assert [check.result for check in checks] == ["ok"]
