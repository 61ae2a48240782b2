"""`evertap history`, and the address of `evertap daemon --metrics`."""

from __future__ import annotations

import asyncio
import json

import pytest

from evertap.api.client import connect
from evertap.cli.main import run
from evertap.model.errors import EvertapError
from evertap.model.views import EventView, HistoryPage
from tests.api.fake import FakeService
from tests.cli.conftest import Shell


def test_a_long_history_comes_in_pages_and_in_order(evertap: Shell, service: FakeService) -> None:
    service.past = 1001
    code, out, _ = evertap("history", "web0", "--json")
    assert code == 0
    assert [event["reason"] for event in json.loads(out)] == [str(number) for number in range(1001)]
    assert [call[2:] for call in service.calls] == [(None, 500), (501, 500), (1, 500)]
    code, out, _ = evertap("history", "web0", "--json", "--limit", "501")
    assert [event["reason"] for event in json.loads(out)] == [str(number) for number in range(500, 1001)]


def test_the_json_has_what_applies(
    evertap: Shell, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def page(name: str, before: int | None, limit: int) -> HistoryPage:
        lost = EventView("2026-11-22T10:00:00.000000+00:00", name, "waiting", None, "eth0: is down")
        found = EventView("2026-11-22T10:00:12.500000+00:00", name, "connected", "eth0", "", 0.31, 12.5)
        again = EventView("2026-11-22T10:01:00.000000+00:00", name, "failed", None, "refused")
        return HistoryPage([lost, found, again], None)

    monkeypatch.setattr(service, "nic_history", page)
    events = json.loads(evertap("history", "web0", "--json")[1])
    plain = {"time", "nic", "event", "uplink", "reason"}
    assert [set(event) for event in events] == [plain, plain | {"latency_ms", "outage_seconds"}, plain]
    assert events[1]["outage_seconds"] == 12.5
    # What a full disk has not taken is told beyond what was asked of it.
    assert json.loads(evertap("history", "web0", "--json", "--limit", "2")[1]) == events[1:]
    code, out, err = evertap("history", "web0")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split("  ")[0] == "TIME"
    assert lines[2].split() == [events[1]["time"], "connected", "eth0", "0.31", "ms", "12.50", "s"]
    assert lines[-2:] == [
        "Without an uplink once: 12.50 s in all.",
        "Without an uplink since 2026-11-22T10:01:00.000000+00:00.",
    ]


def test_a_nic_without_any_history_is_unknown(evertap: Shell, service: FakeService) -> None:
    code, _, err = evertap("history", "nix")
    assert code == 4
    assert '"nix"' in err
    assert evertap("history", "web0", "--limit", "0")[0] == 2


def test_a_page_is_bounded(evertap: Shell, service: FakeService) -> None:
    async def ask(before: int | None, limit: int) -> None:
        async with connect(evertap.runtime) as client:
            await client._ask("NicHistory", HistoryPage, name="web0", before=before, limit=limit)

    asyncio.run(ask(None, 500))
    for before, limit in ((None, 501), (None, 0), (None, 10**30), (-1, 5), (2**63, 5)):
        with pytest.raises(EvertapError, match="InvalidParameter"):
            asyncio.run(ask(before, limit))
    assert len(service.calls) == 1


@pytest.mark.parametrize(
    "address",
    ["9177", ":9177", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:9١77",
     "::1:9177", "[::1]", "[127.0.0.1]:9177", "[::1:9177", "localhost:9177", "127.0.0.1:-1", "http://127.0.0.1:1"],
)  # fmt: skip
def test_an_address_that_is_none_is_a_mistake_in_usage(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["daemon", "--metrics", address]) == 2
    assert (
        "allowed: an IP address and a port, such as 127.0.0.1:9177 or [::1]:9177" in capsys.readouterr().err
    )
    monkeypatch.setenv("EVERTAP_METRICS", address)
    assert run(["daemon"]) == 2


def test_addresses_of_both_protocols_reach_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr("evertap.daemon.run", lambda *folders, **options: given.append(options["metrics"]))
    for address in ("127.0.0.1:9177", "[2001:db8::1]:1", "0.0.0.0:65535"):
        assert run(["daemon", "--metrics", address]) == 0
    monkeypatch.setenv("EVERTAP_METRICS", "[::1]:9177")
    assert run(["daemon"]) == 0
    monkeypatch.setenv("EVERTAP_METRICS", "")
    assert run(["daemon"]) == 0
    assert given == [("127.0.0.1", 9177), ("2001:db8::1", 1), ("0.0.0.0", 65535), ("::1", 9177), None]
