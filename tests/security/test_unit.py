"""evertap.service: its exposure, and a daemon that has what the unit gives and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from evertap.lab import frames as f
from evertap.lab.capture import Capture
from evertap.lab.errors import LabError
from evertap.lab.wires import Lab

from . import unit
from .asking import ask, define, retarget
from .confinement import USER, ConfinedTrial

MAC, OTHER_MAC = "52:54:00:12:34:56", "52:54:00:12:34:57"
TAP = f'mac = "{MAC}"\nuplinks = ["eth0", "eth1"]\nfailback_delay = 0.0\n'
MACVTAP = f'mac = "{OTHER_MAC}"\nuplinks = ["eth0"]\nbackend = "macvtap"\n'

pytestmark = unit.needs_analyze


def test_exposure() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", str(unit.UNIT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    text = unit.UNIT.read_text().replace("ExecStart=evertap", "ExecStart=/bin/true")
    copy = tmp_path / "evertap.service"
    copy.write_text("".join(line for line in text.splitlines(True) if "Documentation" not in line))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False
    )
    assert [line for line in done.stderr.splitlines() if "evertap" in line] == []


@contextmanager
def paused_qemu(lab: Lab, trial: ConfinedTrial, nic: str) -> Iterator[None]:
    """A QEMU of root's with the NIC, which does not run yet: its monitor does."""
    machine = ["qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-accel", "tcg", "-m", "64"]
    process = lab.host.popen([*machine, *trial.arguments(nic)], stderr=subprocess.PIPE)
    try:
        yield
    finally:
        process.kill()
        process.communicate()


def announced(mac: str) -> bytes:
    return f.BROADCAST + f.mac_bytes(mac) + b"\x80\x35"


def devices(lab: Lab) -> list[str]:
    """Ours, with their indexes."""
    lines = lab.host.ip("-o", "link").splitlines()
    return [line.split("@")[0].split(": <")[0] for line in lines if "evertap:" in line]


def test_the_daemon_does_all_of_its_work_with_the_units_rights(lab: Lab) -> None:
    lab.uplink("eth0")
    lab.uplink("eth1")
    lab.uplink("eth9")
    lab.bridge("br0", "eth9")
    with ConfinedTrial(lab.host) as trial:
        trial.start()
        status = Path(f"/proc/{trial.pid}/status").read_text()
        assert f"Uid:\t{USER}\t" in status
        assert "Seccomp:\t2" in status
        with Capture(lab.wire) as wire:
            define(trial, web0=TAP)
            trial.wait("web0", "connected")
            wire.wait(lambda seen: seen.data.startswith(announced(MAC)))
        lab.carrier("eth0", False)
        trial.wait("web0", "connected")
        retarget(trial, "bridge=br0")
        trial.wait("web0", "connected")
        retarget(trial, "eth1")
        define(trial, vm0=MACVTAP)
        lab.carrier("eth0", True)
        with paused_qemu(lab, trial, "vm0"):
            trial.wait("vm0", "connected")
            before = devices(lab)
            trial.kill()
            trial.start()
            for nic in ("web0", "vm0"):
                trial.wait(nic, "connected")
            assert devices(lab) == before
            assert trial.json("plan") == {"actions": []}
            ask(trial, lambda client: client.disconnect("web0"))
        ask(trial, lambda client: client.undefine(["web0", "vm0"]))
        assert trial.stop() == 0
        assert "lacks" not in trial.log
        assert "Traceback" not in trial.log
    assert devices(lab) == []


def test_root_does_its_work_with_the_units_rights(lab: Lab) -> None:
    lab.uplink("eth0")
    with ConfinedTrial(lab.host, user=0) as trial:
        trial.start()
        define(trial, web0=TAP)
        trial.wait("web0", "connected")
        assert trial.stop() == 0


# Each capability is there for something


@pytest.mark.parametrize("name", ["net_admin", "net_raw", "sys_admin"])
def test_without_a_capability_the_daemon_says_which_and_does_not_start(tmp_path: Path, name: str) -> None:
    assert name in unit.capabilities()
    folders = [f"--{kind}-dir={tmp_path / kind}" for kind in ("config", "runtime", "state")]
    done = subprocess.run(
        ["setpriv", f"--bounding-set=-{name}", "--", sys.executable, "-m", "evertap", *folders, "daemon"],
        env=os.environ | {"PYTHONPATH": str(unit.UNIT.parents[2] / "src")},
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert done.returncode == 1
    assert f"the daemon lacks CAP_{name.upper()} (to " in done.stderr
    assert "has to run as root, or as evertap.service runs it" in done.stderr
    assert "CAP_" not in done.stderr.replace(f"CAP_{name.upper()}", "")
    assert list(tmp_path.iterdir()) == []


def test_without_cap_net_raw_the_kernel_itself_refuses_what_the_daemon_needs(lab: Lab) -> None:
    with (
        ConfinedTrial(lab.host, without=["net_raw"], unchecked=True, filtered=False) as trial,
        pytest.raises(LabError, match="Operation not permitted: the daemon has to run as root"),
    ):
        trial.start()


@pytest.mark.parametrize("name", ["net_admin", "sys_admin"])
def test_without_it_no_nic_comes_to_be_and_the_reason_names_it(lab: Lab, name: str) -> None:
    lab.uplink("eth0")
    with ConfinedTrial(lab.host, without=[name], unchecked=True, filtered=False) as trial:
        trial.start()
        define(trial, web0=TAP)
        trial.wait("web0", "failed")
        assert f"CAP_{name.upper()}" in trial.nic("web0").reason


def test_cap_bpf_instead_of_cap_sys_admin_does_not_find_the_taps_that_are_there(lab: Lab) -> None:
    lab.uplink("eth0")
    rights = {"without": ["sys_admin"], "unchecked": True, "filtered": False}
    with ConfinedTrial(lab.host, **rights, also=["bpf"]) as trial:  # type: ignore[arg-type]
        trial.start()
        define(trial, web0=TAP)
        trial.wait("web0", "connected")
        trial.kill()
        with pytest.raises(LabError):
            trial.start()


def test_without_cap_dac_override_it_starts_and_says_what_will_fail(lab: Lab) -> None:
    lab.uplink("eth0")
    with ConfinedTrial(lab.host, without=["dac_override"], filtered=False) as trial:
        (trial.nics_d / "web0.toml").write_text(TAP)
        (trial.nics_d / "vm0.toml").write_text(MACVTAP)
        trial.start()
        assert "the daemon lacks CAP_DAC_OVERRIDE (to open macvtaps, to reach QMP sockets" in trial.log
        trial.wait("web0", "connected")
        refused = trial.try_run("retarget", "web0", "eth1")
        assert "cannot be written: " in refused.stderr
        with paused_qemu(lab, trial, "vm0"):
            deadline = time.monotonic() + 10
            while "Permission denied" not in trial.nic("vm0").reason:
                assert time.monotonic() < deadline, trial.nic("vm0").reason
                time.sleep(0.05)
