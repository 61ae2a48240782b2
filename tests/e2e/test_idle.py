"""No polling: a daemon with nothing to do makes no system call."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from evertap.lab.trial import Trial
from evertap.lab.wires import Lab

SECONDS = 30
LINE = re.compile(r"^(?:\[pid +)?(?:\d+)?\]? *(\d\d):(\d\d):(\d\d\.\d+) (.*)$")


def moment(line: str) -> float:
    """When strace saw it, in seconds of the day."""
    found = LINE.match(line)
    assert found, line
    hours, minutes, seconds = found.group(1, 2, 3)
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def bystanders(trial: Trial) -> list[str]:
    return [f"{nic['name']} {nic['state']} {nic['uplink']}" for nic in trial.json("list")]


@pytest.mark.timeout(90)
def test_twenty_nics_with_nothing_happening_do_not_wake_the_daemon(
    lab: Lab, trial: Trial, tmp_path: Path
) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: apt-get install strace")
    # Connected (by macvlan and by bridge), waiting, disconnected, failed over, and with a failback behind it.
    uplinks = (
        ['"eth0", "eth1"'] * 8 + ['{ bridge = "br0" }'] * 4 + ['"gone0"'] * 6 + ['"eth0"', '"dark0", "eth1"']
    )
    files = [trial.path / f"vm{number}.toml" for number in range(len(uplinks))]
    for number, (file, uplink) in enumerate(zip(files, uplinks, strict=True)):
        text = f'mac = "52:54:00:00:02:{number:02x}"\nuplinks = [{uplink}]\nfailback_delay = 0.5\n'
        file.write_text(text)
    for name in ("eth0", "eth1", "eth9", "dark0"):
        lab.uplink(name)
    lab.bridge("br0", "eth9")
    trial.run("define", *map(str, files))
    trial.run("disconnect", "vm18")
    lab.carrier("eth0", False)
    lab.carrier("dark0", False)
    trial.wait("vm0", "connected")
    time.sleep(0.2)
    lab.carrier("eth0", True)
    time.sleep(1.6)  # failback, and all announcements
    before = bystanders(trial)
    assert before[0] == "vm0 connected eth0"
    assert sum("connected eth0" in line for line in before) == 8
    assert {line.split()[1] for line in before} == {"connected", "waiting", "disconnected"}
    events = [line for line in trial.run("events").splitlines() if " failback " in line]
    assert len(events) == 8
    time.sleep(1)  # the last command's connection is closed

    trace = tmp_path / "trace"
    command = ["strace", "-f", "-tt", "-o", str(trace), "-p", str(trial.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        attached = strace.stderr.readline()
        try:
            if "attached" not in attached:
                pytest.skip(f"strace cannot attach: {attached}")
            time.sleep(SECONDS)
        finally:
            strace.send_signal(signal.SIGINT)
        strace.wait(10)
    lines = trace.read_text().splitlines()
    threads = len(list(Path(f"/proc/{trial.pid}/task").iterdir()))
    # At first strace shows, once a thread, the call that it is found waiting in; its end is of the detaching.
    first = moment(lines[0])
    assert all("<unfinished ...>" in line or "<detached ...>" in line for line in lines[:threads]), lines
    later = [line for line in lines[threads:] if moment(line) > first + 1 and "<detached ...>" not in line]
    assert later == []
    assert len(lines) <= 3 * threads, lines
    # It slept, it was not dead.
    assert bystanders(trial) == before
    lab.remove("eth0")
    trial.wait("vm18", "disconnected")
    assert trial.nic("vm0").uplink == "eth1"
