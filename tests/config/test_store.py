"""The store of definitions, on real files."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from evertap.config.store import Store
from evertap.engine.ports import Live
from evertap.model.errors import DefinitionError, EvertapError, NoSuchNicError
from evertap.model.nic import UplinkSpec

MAC = "52:54:00:00:00:{:02x}"


def text(number: int = 1, uplinks: str = '["eth0"]', more: str = "") -> str:
    return f'mac = "{MAC.format(number)}"\nuplinks = {uplinks}\n{more}'


class Host:
    """Three folders, and a daemon that can be started anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nics = folder / "etc" / "nics.d"
        self.nics.mkdir(parents=True)
        self.restart()

    def restart(self) -> Store:
        self.store = Store(self.folder / "etc", self.folder / "run", self.folder / "lib")
        return self.store

    def write(self, **texts: str | bytes) -> None:
        for name, content in texts.items():
            data = content if isinstance(content, bytes) else content.encode()
            (self.nics / f"{name}.toml").write_bytes(data)

    def macs(self) -> dict[str, str]:
        return {name: nic.mac for name, nic in self.store.load().nics.items()}

    def problems(self) -> dict[str, str]:
        """The texts of the problems, without the folder that they all start with."""
        found = self.store.load().problems
        return {name: str(problem).removeprefix(f"{self.nics}/") for name, problem in found.items()}

    def texts(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in sorted(self.nics.iterdir())}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


# Reading


def test_no_folder_means_no_definitions(tmp_path: Path) -> None:
    assert Store(tmp_path / "a", tmp_path / "b", tmp_path / "c").load() == ({}, {})


def test_definitions_come_in_order_of_names_and_other_files_are_ignored(host: Host) -> None:
    host.write(b=text(2), a=text(1))
    for other in (".hidden.toml", "a.toml~", "notes.txt", ".a.toml.swp", "a.toml.bak"):
        (host.nics / other).write_text("not TOML")
    loaded = host.store.load()
    assert list(loaded.nics) == ["a", "b"]
    assert not loaded.problems


def test_a_link_out_of_the_folder_is_read(host: Host) -> None:
    (host.folder / "elsewhere").write_text(text(1))
    (host.nics / "web0.toml").symlink_to(host.folder / "elsewhere")
    assert host.macs() == {"web0": MAC.format(1)}


BAD = {
    "unknown field": (
        text(more="multicats = 1"),
        'multicats: unknown field; did you mean "multicast"? allowed: mac, uplinks, backend, mode, failover, '
        "failback_delay, flap_hold, guest_link, spoof_check, multicast, queues, mtu, owner, announce, "
        "bring_up, vm",
    ),
    "unknown field of vm": (
        text(more='vm.qmq = "/x"'),
        'vm.qmq: unknown field; did you mean "qmp"? allowed: qmp, domain',
    ),
    "unknown field of an uplink": (
        text(uplinks='[{ nam = "eth0" }]'),
        'uplinks[0].nam: unknown field; did you mean "name"? allowed: name, mac, path, bridge, mode',
    ),
    "name in the file": (
        text(more='name = "other"'),
        "name: unknown field; the file's name is the NIC's name. Remove the line",
    ),
    "wrong type": (
        text(more='queues = "two"'),
        'queues: found "two"; allowed: a whole number from 1 to 256',
    ),
    "out of range": (text(more="mtu = 9"), "mtu: found 9; allowed: a whole number from 68 to 65521"),
    "wrong word": (
        text(more='mode = "bridged"'),
        'mode: found "bridged"; allowed: "bridge", "vepa", "private" or "passthru"',
    ),
    "wrong word of an uplink": (
        text(uplinks='["eth1", { name = "eth0", mode = "x" }]'),
        'uplinks[1].mode: found "x"; allowed: "bridge", "vepa", "private" or "passthru"',
    ),
    "no number": (
        text(more="failback_delay = nan"),
        "failback_delay: found nan; allowed: a number of seconds, 0 or more, or -1 for never",
    ),
    "no MAC": (
        'uplinks = ["eth0"]',
        'mac: missing; add it: a unicast MAC address such as "52:54:00:12:34:56"',
    ),
    "bad MAC": (
        'mac = "52:54:00:12:34"\nuplinks = ["eth0"]',
        'mac: found "52:54:00:12:34"; allowed: a unicast MAC address such as "52:54:00:12:34:56" '
        "(not zero, not multicast)",
    ),
    "multicast MAC": (
        'mac = "53:54:00:12:34:56"\nuplinks = ["eth0"]',
        'mac: found "53:54:00:12:34:56"; allowed: a unicast MAC address such as "52:54:00:12:34:56" '
        "(not zero, not multicast)",
    ),
    "zero MAC": (
        'mac = "00:00:00:00:00:00"\nuplinks = ["eth0"]',
        'mac: found "00:00:00:00:00:00"; allowed: a unicast MAC address such as "52:54:00:12:34:56" '
        "(not zero, not multicast)",
    ),
    "no uplinks": (
        text(uplinks="[]"),
        'uplinks: found []; allowed: a list of one or more uplinks, each a name such as "eth0" (a glob is '
        "allowed), or a table with exactly one of name, mac, path and bridge, and mode if it differs",
    ),
    "an uplink twice": (
        text(uplinks='["eth0", { name = "eth0" }]'),
        'uplinks[1]: found "eth0"; it stands in the list twice. Remove one',
    ),
    "its own tap": (
        text(uplinks='["bad"]'),
        'uplinks[0]: found "bad"; that is this NIC\'s own tap. Name a host interface',
    ),
    "not TOML": (
        "mac = 52:54",
        "is not TOML: Expected newline or end of document after a statement (at line 1, column 9). "
        "Correct it there",
    ),
    "half-written": (
        text()[:15],
        "is not TOML: Unterminated string (at end of document). Correct it there",
    ),
    "empty": ("", 'mac: missing; add it: a unicast MAC address such as "52:54:00:12:34:56"'),
    "nested without end": ("a = " + "[" * 20_000, "is not TOML: nested too deeply. Correct it there"),
    "not UTF-8": (
        text().encode() + b"# caf\xe9",
        "is not UTF-8: found byte 0xe9 at offset 50. Save it as UTF-8",
    ),
    "endless": ("#" * 70_000, "found more than 64 KiB; a definition is a few lines"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_definition_is_refused_with_a_message_and_the_others_go_on(
    host: Host, content: str | bytes, message: str
) -> None:
    host.write(good=text(7), bad=content)
    assert host.problems() == {"bad": f"bad.toml: {message}"}
    assert host.macs() == {"good": MAC.format(7)}


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("0123456789abcdef", '"0123456789abcdef" cannot be a NIC\'s name: found 16 bytes; allowed: 1 to 15'),
        ("a b", "\"a b\" cannot be a NIC's name: found ' ' in it; not allowed: / : % and white space"),
        ("a:b", "\"a:b\" cannot be a NIC's name: found ':' in it; not allowed: / : % and white space"),
    ],
)
def test_file_with_a_name_that_no_tap_can_have_is_refused(host: Host, file: str, message: str) -> None:
    host.write(**{file: text()})
    assert host.problems() == {file: f"{file}.toml: {message}. Rename the file"}


def test_file_with_a_name_that_is_not_text_is_refused_in_words_that_can_be_printed(host: Host) -> None:
    (host.nics / os.fsdecode(b"x\xff.toml")).write_text(text())
    assert host.problems() == {"x\\udcff": "x\\udcff.toml: its name is not UTF-8. Rename the file"}


def test_what_is_no_file_is_refused_and_never_waited_for(host: Host) -> None:
    (host.nics / "folder.toml").mkdir()
    os.mkfifo(host.nics / "pipe.toml")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(host.nics / "sock.toml"))
    (host.nics / "zero.toml").symlink_to("/dev/zero")
    (host.nics / "gone.toml").symlink_to("nowhere")
    (host.nics / "loop.toml").symlink_to("loop.toml")
    assert host.problems() == {
        "folder": "folder.toml: found a folder; allowed: a file with one definition",
        "pipe": "pipe.toml: found not a regular file; allowed: a file with one definition",
        "sock": "sock.toml: cannot be read: No such device or address. Mend its rights or its disk",
        "zero": "zero.toml: found not a regular file; allowed: a file with one definition",
        "gone": "gone.toml: is a link to nowhere, which does not exist. Mend the link",
        "loop": "loop.toml: cannot be read: Too many levels of symbolic links. Mend its rights or its disk",
    }


# Definitions that do not fit together

TOGETHER = {
    "one MAC": (
        text(1),
        text(1),
        'mac: found "52:54:00:00:00:01", which NIC "a" has already. Give each NIC its own',
    ),
    "passthru beside another": (
        text(1),
        text(2, more='mode = "passthru"'),
        'uplinks[0]: found "eth0", which NIC "a" uses too, and one of them in mode passthru, which takes the '
        "interface for itself. Use another uplink or another mode",
    ),
    "beside passthru": (
        text(1, '[{ mac = "02:00:00:00:00:01", mode = "passthru" }]'),
        text(2, '["eth1", { mac = "02:00:00:00:00:01" }]'),
        'uplinks[1]: found "mac=02:00:00:00:00:01", which NIC "a" uses too, and one of them in mode '
        "passthru, which takes the interface for itself. Use another uplink or another mode",
    ),
    "another's tap": (
        text(1),
        text(2, '["a"]'),
        'uplinks[0]: found "a", which is evertap\'s own tap. Name a host interface',
    ),
    "another's tap as a bridge": (
        text(1),
        text(2, '[{ bridge = "a" }]'),
        'uplinks[0]: found "a", which is evertap\'s own tap. Name a host interface',
    ),
    "named as an uplink": (
        text(1, '["b"]'),
        text(2),
        '"b" is an uplink of NIC "a", so no NIC can have that name. Rename the file',
    ),
}


@pytest.mark.parametrize(("first", "second", "message"), TOGETHER.values(), ids=TOGETHER)
def test_of_two_that_do_not_fit_the_later_is_refused(
    host: Host, first: str, second: str, message: str
) -> None:
    host.write(a=first, b=second)
    assert host.problems() == {"b": f"b.toml: {message}"}
    assert list(host.macs()) == ["a"]


def test_what_is_in_force_wins_against_a_newcomer_also_after_a_restart(host: Host) -> None:
    host.write(b=text(1))
    host.store.load()
    host.write(a=text(1))
    for _ in range(2):
        assert host.problems() == {
            "a": 'a.toml: mac: found "52:54:00:00:00:01", which NIC "b" has already. Give each NIC its own'
        }
        assert host.macs() == {"b": MAC.format(1)}
        host.restart()


def test_newcomer_is_taken_once_the_other_has_gone(host: Host) -> None:
    host.write(b=text(1))
    host.store.load()
    host.write(a=text(1))
    host.store.load()
    (host.nics / "b.toml").unlink()
    assert host.macs() == {"a": MAC.format(1)}
    assert not host.problems()


def test_two_files_may_exchange_their_macs(host: Host) -> None:
    host.write(a=text(1), b=text(2))
    host.store.load()
    host.write(a=text(2), b=text(1))
    assert host.macs() == {"a": MAC.format(2), "b": MAC.format(1)}
    assert not host.problems()


def test_a_change_that_needs_a_refused_one_is_refused_too(host: Host) -> None:
    host.write(a=text(1), b=text(2), c=text(3))
    host.store.load()
    host.write(a=text(3), b=text(1))  # a cannot leave MAC 1, as c keeps MAC 3
    assert set(host.problems()) == {"a", "b"}
    assert host.macs() == {"a": MAC.format(1), "b": MAC.format(2), "c": MAC.format(3)}


# The last good definition


def test_refused_file_leaves_its_last_good_definition_in_force_also_after_a_restart(host: Host) -> None:
    host.write(web0=text(1))
    host.store.load()
    host.write(web0=text(2)[:20])
    for _ in range(2):
        assert host.macs() == {"web0": MAC.format(1)}
        assert list(host.problems()) == ["web0"]
        host.restart()
    host.write(web0=text(2))
    assert host.macs() == {"web0": MAC.format(2)}
    assert not host.problems()


def test_file_that_is_gone_takes_its_last_good_definition_along(host: Host) -> None:
    host.write(web0=text(1))
    host.store.load()
    (host.nics / "web0.toml").unlink()
    assert host.macs() == {}
    host.write(web0="broken")
    host.restart()
    assert host.macs() == {}
    assert list((host.folder / "lib" / "accepted").iterdir()) == []


def test_damaged_copy_is_as_none(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host.write(web0=text(1))
    host.store.load()
    (host.folder / "lib" / "accepted" / "web0.toml").write_bytes(b"\xff")
    host.restart()
    assert host.macs() == {"web0": MAC.format(1)}
    host.write(web0="broken")
    host.restart()
    assert host.macs() == {"web0": MAC.format(1)}  # the copy was made anew
    assert "of no use" in caplog.text


def test_state_folder_that_cannot_be_written_stops_nothing(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    (host.folder / "lib").write_text("a file in the way")
    host.write(web0=text(1))
    assert host.macs() == {"web0": MAC.format(1)}
    host.write(web0="broken")
    assert host.macs() == {"web0": MAC.format(1)}
    assert host.store.define({"web1": text(2)}).keys() == {"web1"}
    assert "cannot be kept" in caplog.text


def test_folder_that_cannot_be_read_leaves_everything_in_force(host: Host) -> None:
    host.write(web0=text(1))
    host.store.load()
    host.nics.rename(host.folder / "away")
    host.nics.write_text("a file in the way")
    loaded = host.store.load()
    assert list(loaded.nics) == ["web0"]
    assert str(loaded.problems["web0"]) == (
        f"{host.nics}: cannot be read: Not a directory. Mend its rights or its disk"
    )


def test_a_thousand_definitions_are_read_quickly(host: Host) -> None:
    for number in range(1000):
        mac = f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}"
        host.write(**{f"n{number}": f'mac = "{mac}"\nuplinks = ["eth0"]\n'})
    assert len(host.macs()) == 1000  # checking each against each takes seconds; the test's time limit tells


# define


def test_define_writes_files_for_everybody_to_read(host: Host) -> None:
    before = os.umask(0o077)
    try:
        made = host.store.define({"web0": text(1) + "# mine\n"})
    finally:
        os.umask(before)
    assert made["web0"].mac == MAC.format(1)
    assert host.texts() == {"web0.toml": text(1) + "# mine\n"}
    assert (host.nics / "web0.toml").stat().st_mode & 0o777 == 0o644
    assert host.macs() == {"web0": MAC.format(1)}


def test_define_makes_the_folder(tmp_path: Path) -> None:
    Store(tmp_path / "a" / "etc", tmp_path / "b", tmp_path / "c").define({"web0": text()})
    assert (tmp_path / "a" / "etc" / "nics.d" / "web0.toml").exists()


def test_define_judges_the_final_set(host: Host) -> None:
    host.store.define({"a": text(1), "b": text(2)})
    host.store.define({"a": text(2), "b": text(1)})
    assert host.macs() == {"a": MAC.format(2), "b": MAC.format(1)}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            {"a": text(1), "b": "mac ="},
            "b.toml: is not TOML: Invalid value (at end of document). Correct it there",
        ),
        (
            {"a": text(1), "b": text(1)},
            'b.toml: mac: found "52:54:00:00:00:01", which NIC "a" has already. Give each NIC its own',
        ),
        (
            {"a": text(1), "b": text(9)},
            'b.toml: mac: found "52:54:00:00:00:09", which NIC "old" has already. Give each NIC its own',
        ),
        (
            {"a": text(1), "../b": text(2)},
            '../b.toml: "../b" cannot be a NIC\'s name: it starts with a dot. Rename the file',
        ),
        (
            {"a": text(1), "b/c": text(2)},
            "b/c.toml: \"b/c\" cannot be a NIC's name: found '/' in it; not allowed: / : % and white space. "
            "Rename the file",
        ),
        (
            {"a": text(1), "": text(2)},
            '.toml: "" cannot be a NIC\'s name: found 0 bytes; allowed: 1 to 15. Rename the file',
        ),
        (
            {"a": text(1), "b": text(2) + "# \ud800"},
            "b.toml: is not UTF-8: found byte 0xed at offset 47. Save it as UTF-8",
        ),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:30],
)
def test_define_writes_nothing_if_one_is_bad(host: Host, texts: dict[str, str], message: str) -> None:
    host.store.define({"old": text(9)})
    with pytest.raises(DefinitionError) as caught:
        host.store.define(texts)
    assert str(caught.value) == message
    assert host.texts() == {"old.toml": text(9)}


def test_name_with_a_lone_surrogate_is_refused(host: Host) -> None:
    with pytest.raises(DefinitionError):
        host.store.define({"a\ud800": text()})


@pytest.mark.parametrize("failure", [errno.ENOSPC, errno.EROFS])
def test_define_puts_everything_back_when_a_write_fails(
    host: Host, monkeypatch: pytest.MonkeyPatch, failure: int
) -> None:
    host.store.define({"a": text(1), "b": text(2)})
    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if target.name == "b.toml" and self.name.endswith(".new"):
            raise OSError(failure, os.strerror(failure))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(EvertapError) as caught:
        host.store.define({"a": text(3), "b": text(4), "new": text(5)})
    assert str(caught.value) == (
        f"{host.nics}/b.toml: cannot be written: {os.strerror(failure)}. Nothing was changed"
    )
    assert host.texts() == {"a.toml": text(1), "b.toml": text(2)}
    assert host.macs() == {"a": MAC.format(1), "b": MAC.format(2)}


def test_define_removes_new_files_when_a_write_fails(host: Host) -> None:
    (host.nics / "b.toml").mkdir()
    with pytest.raises(EvertapError, match="Nothing was changed"):
        host.store.define({"a": text(1), "b": text(2)})
    assert sorted(path.name for path in host.nics.iterdir()) == ["b.toml"]
    assert host.macs() == {}


def test_a_reader_never_sees_a_part_of_a_file(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.store.define({"a": text(1)})
    seen: list[str] = []
    fsync = os.fsync

    def looking(descriptor: int) -> None:
        seen.append((host.nics / "a.toml").read_text())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", looking)
    host.store.define({"a": text(2)})
    assert seen == [text(1), text(2)]  # file and then folder are on the disk before it is done


def test_remains_of_a_killed_daemon_are_in_nobodys_way(host: Host) -> None:
    (host.nics / ".change").mkdir()
    (host.nics / ".change" / "a.toml.new").write_text("half")
    host.store.define({"a": text(1)})
    assert host.texts() == {"a.toml": text(1)}
    for path in (host.folder / "lib/accepted/.a.toml.new", host.folder / "run/live/.a.json.new"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
        host.restart().load()
        assert not path.exists()


def test_a_change_that_was_decided_on_is_finished_by_the_next_daemon(host: Host) -> None:
    host.store.define({"a": text(1), "b": text(2), "c": text(3)})
    decided = host.nics / ".changed"
    decided.mkdir()
    (decided / "a.toml.new").write_text(text(4))
    (decided / "b.toml.gone").touch()
    for name in "abc":
        (decided / f"{name}.toml.old").hardlink_to(host.nics / f"{name}.toml")
    store = host.restart()
    assert sorted(store.load().nics) == ["a", "c"]
    assert host.texts() == {"a.toml": text(4), "c.toml": text(3)}  # c had been done already


# undefine


def test_undefine_removes_files_and_copies(host: Host) -> None:
    host.store.define({"a": text(1), "b": text(2), "c": text(3)})
    host.store.undefine(["a", "c"])
    assert host.texts() == {"b.toml": text(2)}
    assert list(host.restart().load().nics) == ["b"]


def test_undefine_removes_a_broken_file(host: Host) -> None:
    host.write(a="broken")
    host.store.undefine(["a"])
    assert host.texts() == {}


@pytest.mark.parametrize("name", ["b", "", "..", "../outside", "x/../a", "a\ud800"])
def test_undefine_of_what_is_no_nic_removes_nothing(host: Host, name: str) -> None:
    (host.nics.parent / "outside.toml").write_text("precious")
    host.store.define({"a": text(1)})
    with pytest.raises(NoSuchNicError):
        host.store.undefine(["a", name])
    assert host.texts() == {"a.toml": text(1)}
    assert (host.nics.parent / "outside.toml").exists()


def test_undefine_puts_everything_back_when_it_fails(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.store.define({"a": text(1), "b": text(2)})
    unlink = Path.unlink

    def failing(self: Path, missing_ok: bool = False) -> None:
        if self.name == "b.toml":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", failing)
    with pytest.raises(EvertapError, match="Read-only file system"):
        host.store.undefine(["a", "b"])
    monkeypatch.undo()
    assert host.texts() == {"a.toml": text(1), "b.toml": text(2)}


# set_uplinks


def test_new_uplinks_keep_comments_and_layout(host: Host) -> None:
    host.write(
        web0="# Web server\n"
        'mac="52:54:00:00:00:01"   # from the VM\n'
        "\n"
        'uplinks = ["eth0", "eth1"] # first the fast one\n'
        "mtu=1400\n"
        '[vm]\nqmp = "/run/x" # ours\n'
    )
    nic = host.store.set_uplinks("web0", ["eth2", {"mac": "02:00:00:00:00:01", "mode": "vepa"}])
    assert nic.uplinks == (UplinkSpec(name="eth2"), UplinkSpec(mac="02:00:00:00:00:01", mode="vepa"))
    assert host.texts()["web0.toml"] == (
        "# Web server\n"
        'mac="52:54:00:00:00:01"   # from the VM\n'
        "\n"
        'uplinks = ["eth2", {mac = "02:00:00:00:00:01", mode = "vepa"}] # first the fast one\n'
        "mtu=1400\n"
        '[vm]\nqmp = "/run/x" # ours\n'
    )
    assert host.store.load().nics["web0"] == nic


def test_new_uplinks_replace_tables_behind_other_tables(host: Host) -> None:
    host.write(
        web0='mac = "52:54:00:00:00:01"\n[vm]\nqmp = "/run/x"\n[[uplinks]]\nname = "eth0"\n'
        '[[uplinks]]\nname = "eth1"\n'
    )
    nic = host.store.set_uplinks("web0", ["eth2", {"bridge": "br0"}])
    assert nic.uplinks == (UplinkSpec(name="eth2"), UplinkSpec(bridge="br0"))
    assert nic.vm.qmp == "/run/x"
    assert host.restart().load().nics["web0"] == nic


@pytest.mark.parametrize(
    ("uplinks", "message"),
    [
        (["eth1", "eth1"], 'uplinks[1]: found "eth1"; it stands in the list twice. Remove one'),
        (
            [{"nmae": "eth1"}],
            'uplinks[0].nmae: unknown field; did you mean "name"? allowed: name, mac, path, bridge, mode',
        ),
        ([{"": ""}], "uplinks[0].: unknown field; allowed: name, mac, path, bridge, mode"),
        (["web1"], 'uplinks[0]: found "web1", which is evertap\'s own tap. Name a host interface'),
        (
            ["eth9"],
            'uplinks[0]: found "eth9", which NIC "web1" uses too, and one of them in mode passthru, which '
            "takes the interface for itself. Use another uplink or another mode",
        ),
    ],
    ids=lambda value: "" if isinstance(value, list) else value[:30],
)
def test_bad_uplinks_are_refused_and_the_file_stays(
    host: Host, uplinks: list[dict[str, str] | str], message: str
) -> None:
    host.write(web0=text(1), web1=text(2, '[{ name = "eth9", mode = "passthru" }]'))
    with pytest.raises(DefinitionError) as caught:
        host.store.set_uplinks("web0", uplinks)
    assert str(caught.value) == f"{host.nics}/web0.toml: {message}"
    assert host.texts()["web0.toml"] == text(1)


def test_new_uplinks_do_not_write_over_an_edit_in_progress(host: Host) -> None:
    host.write(web0=text(1))
    host.store.load()
    host.write(web0=text(1) + "mtu =")
    with pytest.raises(DefinitionError, match="is not TOML"):
        host.store.set_uplinks("web0", ["eth1"])
    assert host.texts()["web0.toml"] == text(1) + "mtu ="


def test_new_uplinks_of_no_nic(host: Host) -> None:
    for name in ("web7", "../../etc/passwd"):
        with pytest.raises(NoSuchNicError):
            host.store.set_uplinks(name, ["eth0"])


# The running state


def test_running_state_outlives_the_daemon_until_it_is_forgotten(host: Host) -> None:
    live = Live((UplinkSpec(name="eth1"),), (UplinkSpec(mac="02:00:00:00:00:01", mode="vepa"),), True)
    host.store.save_live("web0", live)
    assert host.restart().load_live("web0") == live
    host.store.save_live("web0", Live())
    assert host.store.load_live("web0") == Live()
    assert list((host.folder / "run" / "live").iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"{", b"[]x", b'{"disconnected": 1}', b"\xff", b"[[{}], 3]"])
def test_damaged_running_state_is_as_none(host: Host, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (host.folder / "run" / "live").mkdir(parents=True)
    (host.folder / "run" / "live" / "web0.json").write_bytes(data)
    assert host.store.load_live("web0") == Live()
    assert "running state of NIC web0 is lost" in caplog.text


def test_running_state_that_cannot_be_kept_is_said(host: Host) -> None:
    (host.folder / "run").write_text("a file in the way")
    with pytest.raises(EvertapError, match=r"web0.json: cannot be written: Not a directory"):
        host.store.save_live("web0", Live(disconnected=True))
