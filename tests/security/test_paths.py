"""Names and links: nothing that a client, a definition or another user says leads out of the folders."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from evertap.api.client import Client, connect
from evertap.daemon import check_folders
from evertap.lab.errors import LabError
from evertap.lab.trial import Trial
from evertap.lab.wires import Lab
from evertap.model.domain_nics import taps_of
from evertap.model.domain_parse import parse_domain
from evertap.model.errors import EvertapError

from .asking import ask, define, retarget

TEXT = 'mac = "52:54:00:12:34:56"\nuplinks = ["eth0"]\n'
SECRET = "nobody's business"
STRANGER = 4242

NAMES = (
    "../victim",
    "../nics.d/../victim",
    "/etc/victim",
    "..",
    ".",
    "",
    ".hidden",
    "a/b",
    "a\0b",
    "a\nb",
    "a b",
    "a:b",
    "%d",
    "\udcff",
    "a" * 16,
)


@pytest.fixture
def trial(lab: Lab) -> Iterator[Trial]:
    """Not started yet; beside its folders lies a victim."""
    with Trial(lab.host) as made:
        for folder in ("config/nics.d", "runtime", "state", "elsewhere"):
            (made.path / folder).mkdir(parents=True)
        victim = made.path / "elsewhere" / "victim.toml"
        victim.write_text(SECRET)
        victim.chmod(0o600)
        os.link(victim, made.path / "config" / "victim.toml")
        yield made
        assert "Traceback" not in made.log
        assert (victim.read_text(), victim.stat().st_mode & 0o777) == (SECRET, 0o600)
        assert os.listdir(made.path / "elsewhere") == ["victim.toml"]  # noqa: PTH208


def entries(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_no_name_leads_out_of_the_folders(lab: Lab, trial: Trial) -> None:
    trial.start()
    define(trial, web0=TEXT)
    before = entries(trial.path)

    async def refused(client: Client, name: str) -> None:
        for request in (
            client.define({name: TEXT.replace("56", "57")}),
            client.undefine([name]),
            client.retarget(name, ["eth1"]),
            client.retarget(name, ["eth1"], live=True),
            client.disconnect(name),
            client.connect(name),
            client.attach(name, "/nowhere.qmp"),
            client.detach(name),
            client.attach_domain(name, "../../vm"),
            client.open_tap(name),
            client.arguments([name]),
            client.nic(name),
        ):
            with pytest.raises(EvertapError) as caught:
                await request
            assert "fault" not in str(caught.value), (name, caught.value)

    async def story() -> None:
        async with connect(trial.path / "runtime") as client:
            for name in NAMES:
                await refused(client, name)
            for path in ("../x.qmp", "x.qmp", "", "/a\0b"):
                with pytest.raises(EvertapError):
                    await client.attach("web0", path)

    asyncio.run(story())
    assert entries(trial.path) == before
    assert [nic["name"] for nic in trial.json("list")] == ["web0"]


def test_no_file_name_in_nics_d_leads_elsewhere(lab: Lab, trial: Trial) -> None:
    names = [b".hidden", b"a b", b"a:b", b"%d", b"\xff", b"a" * 16, b"a\nb", b"..."]
    for name in names:
        Path(os.fsdecode(os.fsencode(trial.nics_d) + b"/" + name + b".toml")).write_text(TEXT)
    trial.start()
    assert {nic["state"] for nic in trial.json("list")} == {"failed"}
    assert "evertap:" not in lab.host.ip("link")


@pytest.mark.parametrize("tap", ["../victim", "/etc/victim", "a/b", "..", "a b"])
def test_no_name_in_a_domain_leads_elsewhere(tap: str) -> None:
    metadata = (
        '<metadata><e:nics xmlns:e="urn:evertap:1"><e:nic mac="52:54:00:12:34:56"><e:uplink name="eth0"/>'
    )
    text = f"""<domain type="kvm"><name>../../victim</name><uuid>5a1b0c7e-0000-4000-8000-000000000001</uuid>
      {metadata}</e:nic></e:nics></metadata><devices><interface type="ethernet">
      <mac address="52:54:00:12:34:56"/><target dev="{tap}" managed="no"/></interface></devices></domain>"""
    with suppress(EvertapError):
        assert taps_of(parse_domain(text)) == {}


# Links that were there before


def test_a_link_in_the_sockets_place_is_replaced_and_not_followed(trial: Trial) -> None:
    socket = trial.path / "runtime" / "evertap.sock"
    socket.symlink_to("../elsewhere/victim.toml")
    trial.start()
    assert socket.is_socket()
    assert not socket.is_symlink()


def test_a_link_in_the_locks_place_is_not_followed(trial: Trial) -> None:
    (trial.path / "runtime" / "evertap.lock").symlink_to("../elsewhere/new")
    with pytest.raises(LabError, match=r"cannot listen on .*: Too many levels of symbolic links"):
        trial.start()


def test_links_in_the_place_of_what_is_kept_are_replaced_and_not_followed(lab: Lab, trial: Trial) -> None:
    for folder, name in (("runtime/live", "web0.json"), ("state/accepted", "web0.toml")):
        (trial.path / folder).mkdir()
        for link in (name, f".{name}.new", f".{name}.old"):
            (trial.path / folder / link).symlink_to(trial.path / "elsewhere" / "victim.toml")
    for link in (".web0.toml.new", ".web0.toml.old"):
        (trial.nics_d / link).symlink_to(trial.path / "elsewhere" / "victim.toml")
    trial.start()
    define(trial, web0=TEXT)
    ask(trial, lambda client: client.disconnect("web0"))
    retarget(trial, "eth1")
    ask(trial, lambda client: client.undefine(["web0"]))


def test_a_definition_that_is_a_link_is_not_written_through(lab: Lab, trial: Trial) -> None:
    elsewhere = trial.path / "config" / "shared.toml"
    elsewhere.write_text(TEXT)
    (trial.nics_d / "web0.toml").symlink_to(elsewhere)
    trial.start()
    retarget(trial, "eth1")
    assert elsewhere.read_text() == TEXT
    assert "eth1" in (trial.nics_d / "web0.toml").read_text()


# Folders that others have


KEPT = ("runtime", "state", "runtime/live", "state/accepted", "state/domains")


def another_users(folder: Path) -> None:
    os.chown(folder, STRANGER, 0)


def everybodys(folder: Path) -> None:
    folder.chmod(0o1777)


def a_groups(folder: Path) -> None:
    os.chown(folder, 0, STRANGER)
    folder.chmod(0o775)


def a_link_of_another_user(folder: Path) -> None:
    folder.rmdir()
    folder.symlink_to("/etc")
    os.chown(folder, STRANGER, 0, follow_symlinks=False)


@pytest.mark.parametrize("become", [another_users, everybodys, a_groups, a_link_of_another_user])
def test_a_folder_where_others_could_plant_links_is_refused(
    tmp_path: Path, become: Callable[[Path], None]
) -> None:
    for number, name in enumerate(KEPT):
        folders = [tmp_path / str(number) / kind for kind in ("config", "runtime", "state")]
        folder = tmp_path / str(number) / name
        folder.mkdir(parents=True)
        check_folders(*folders)
        become(folder)
        with pytest.raises(
            EvertapError, match=rf"{name} (belongs to|can be written by) .*, who could mislead"
        ):
            check_folders(*folders)


def test_a_daemon_in_such_a_folder_does_not_start_and_touches_nothing(trial: Trial) -> None:
    (trial.path / "runtime").chmod(0o1777)
    before = entries(trial.path)
    with pytest.raises(LabError, match="runtime can be written by every user, who could mislead the daemon"):
        trial.start()
    assert entries(trial.path) - before == {"daemon.log"}


def test_who_else_can_write_definitions_is_told(trial: Trial) -> None:
    trial.nics_d.chmod(0o777)
    trial.start()
    assert f"{trial.nics_d} can be written by every user, who can change NICs" in trial.log
