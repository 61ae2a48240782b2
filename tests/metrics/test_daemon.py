"""A real daemon, scraped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from evertap.api.client import Client, connect
from evertap.lab.trial import Trial
from evertap.lab.wires import Lab

WEB0 = 'mac = "52:54:00:00:02:01"\nuplinks = ["eth0"]\n'
SOURCES = Path(__file__).parents[2] / "src"
Samples = dict[tuple[str, ...], float]


@pytest.fixture
def trial(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trial]:
    monkeypatch.setenv("EVERTAP_METRICS", "127.0.0.1:9177")
    with Trial(lab.host) as made:
        made.start()
        yield made
        assert "Traceback" not in made.log, made.log


def scrape(lab: Lab) -> Samples:
    """By name and values of the labels."""
    with lab.host.enter(), socket.create_connection(("127.0.0.1", 9177), 10) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        text = b"".join(iter(lambda: client.recv(65536), b""))
    families = text_string_to_metric_families(text.partition(b"\r\n\r\n")[2].decode())
    samples = [sample for family in families for sample in family.samples]
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


def until(lab: Lab, condition: Callable[[Samples], bool]) -> Samples:
    """The metrics once they are so; the text of the scrape before may be given again for a while."""
    deadline = time.monotonic() + 20
    while not condition(samples := scrape(lab)):
        assert time.monotonic() < deadline, samples
        time.sleep(0.1)
    return samples


def state(samples: Samples, name: str = "web0") -> str:
    (found,) = (key[2] for key, value in samples.items() if key[:2] == ("evertap_nic_state", name) and value)
    return found


@pytest.fixture
def held() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def ask(trial: Trial, question: Callable[[Client], Awaitable[list[int]]]) -> list[int]:
    async def asking() -> list[int]:
        async with connect(trial.path / "runtime") as client:
            return await question(client)

    return asyncio.run(asking())


def test_what_happens_to_a_nic_is_in_the_metrics(lab: Lab, trial: Trial, held: contextlib.ExitStack) -> None:
    trial.define("web0", WEB0)
    waiting = until(lab, lambda now: state(now) == "waiting")
    assert ("evertap_nic_uplink_info", "web0", "eth0") not in waiting
    assert waiting["evertap_nic_outages_total", "web0"] == 0
    without = "evertap_nic_without_uplink_seconds_total", "web0"
    until(lab, lambda now: now[without] > waiting[without])  # it counts on
    lab.uplink("eth0")
    trial.wait("web0", "connected")
    lab.remove("eth0")
    trial.wait("web0", "waiting")
    lab.uplink("eth0")
    trial.wait("web0", "connected")
    connected = until(
        lab, lambda now: now["evertap_events_total", "waiting"] == 2 and state(now) == "connected"
    )
    assert connected["evertap_nic_uplink_info", "web0", "eth0"] == 1
    assert connected["evertap_nic_outages_total", "web0"] == trial.nic("web0").outages == 1
    told = trial.json("history", "web0")
    lengths = [event["outage_seconds"] for event in told if "outage_seconds" in event]
    assert connected["evertap_outage_seconds_count",] == len(lengths) == 2
    assert connected["evertap_outage_seconds_sum",] == pytest.approx(sum(lengths), abs=1e-5)
    assert connected[without] == pytest.approx(sum(lengths), abs=1e-5)
    latencies = [event["latency_ms"] / 1000 for event in told if "latency_ms" in event]
    assert connected["evertap_connect_latency_seconds_count",] == len(latencies) == 2
    assert connected["evertap_connect_latency_seconds_sum",] == pytest.approx(sum(latencies), abs=1e-5)
    within = sum(latency <= 0.01 for latency in latencies)
    assert connected["evertap_connect_latency_seconds_bucket", "0.01"] == within
    assert connected["evertap_events_total", "connected"] == 2
    assert connected["evertap_kernel_notifications_total",] > waiting["evertap_kernel_notifications_total",]
    assert connected["evertap_resyncs_total",] == 0
    assert connected["evertap_history_lost_events_total",] == 0
    trial.define("web1", WEB0.replace("01", "02"))
    later = until(lab, lambda now: ("evertap_nic_outages_total", "web1") in now)
    assert later[without] == connected[without]  # and then no more
    for descriptor in ask(trial, lambda client: client.open_tap("web0")):  # it stays while it is held
        held.callback(os.close, descriptor)
    trial.run("undefine", "web0")
    assert (lab.host.ip("-br", "link", "show", "web0")).startswith("web0")
    gone = until(lab, lambda now: now.get(("evertap_events_total", "undefined")) == 1)
    assert not [key for key in gone if "web0" in key]


def test_refusals_and_connections_are_counted_and_a_restart_begins_anew(lab: Lab, trial: Trial) -> None:
    lab.uplink("eth0")
    trial.define("web0", WEB0 + 'owner = "nobody-of-that-name"\n')
    failed = until(lab, lambda now: state(now) == "failed")
    assert failed["evertap_action_failures_total",] >= 1
    (trial.nics_d / "bad0.toml").write_text("mac")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(trial.path / "runtime" / "evertap.sock"))
        until(lab, lambda now: now["evertap_api_connections",] == 1)
        found = until(lab, lambda now: ("evertap_nic_outages_total", "bad0") in now)
        assert state(found, "bad0") == "failed"  # as `list` has it
    until(lab, lambda now: now["evertap_api_connections",] == 0)
    without = "evertap_nic_without_uplink_seconds_total", "web0"
    before = until(lab, lambda now: now[without] > 1)[without]
    trial.json("history", "web0")  # it is written now
    trial.kill()
    started = time.monotonic()
    trial.start()
    # The outage goes on, but the counter counts from this daemon's start, as Prometheus expects it.
    again = until(lab, lambda now: ("evertap_nic_outages_total", "web0") in now and state(now) == "failed")
    assert again[without] < time.monotonic() - started
    trial.run("undefine", "web0")
    ended = trial.json("history", "web0")[-1]
    assert ended["event"] == "undefined"
    assert ended["outage_seconds"] > before


def test_an_address_that_is_taken_is_told_and_without_one_there_is_no_server(lab: Lab) -> None:
    with Trial(lab.host) as trial:
        with lab.host.enter(), socket.socket() as other:
            other.bind(("127.0.0.1", 9177))
            other.listen()
            command = [*trial.daemon_command, "--metrics", "127.0.0.1:9177"]
            environment = os.environ | {"PYTHONPATH": str(SOURCES)}
            with lab.host.popen(command, stderr=subprocess.PIPE, text=True, env=environment) as daemon:
                _, errors = daemon.communicate(timeout=20)
        assert daemon.returncode == 1
        assert "evertap: metrics cannot be served at 127.0.0.1:9177: " in errors
        assert "Traceback" not in errors
        trial.start()
        with pytest.raises(ConnectionRefusedError):
            scrape(lab)
