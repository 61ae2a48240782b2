"""Every verb: what it asks of the daemon, what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from evertap.cli.main import run
from evertap.model.errors import EvertapError
from evertap.model.views import CandidateView
from tests.api.fake import FakeService, event, view
from tests.cli.conftest import Shell

GOOD = 'mac = "52:54:00:00:00:01"\nuplinks = ["eth0"]\n'


@pytest.fixture
def web0(evertap: Shell) -> Path:
    file = evertap.folder / "web0.toml"
    file.write_text(GOOD)
    return file


# JSON, the contract


def test_list_prints_an_array_of_nics(evertap: Shell, service: FakeService) -> None:
    code, out, _ = evertap("list", "--json")
    assert code == 0
    assert json.loads(out) == msgspec.to_builtins(list(service.known.values()))
    wanted = {"name", "mac", "backend", "mode", "state", "uplink", "candidates", "reason", "since", "tap"}
    assert wanted | {"outages"} <= json.loads(out)[0].keys()


def test_show_prints_one_nic(evertap: Shell, service: FakeService) -> None:
    code, out, _ = evertap("show", "web1", "--json")
    assert code == 0
    assert json.loads(out) == msgspec.to_builtins(service.known["web1"])


def test_uplinks_prints_an_array(evertap: Shell, service: FakeService) -> None:
    code, out, _ = evertap("uplinks", "--json")
    assert (code, json.loads(out)) == (0, msgspec.to_builtins(service.uplinks()))


def test_plan_prints_its_actions(evertap: Shell, service: FakeService) -> None:
    step = {"nic": "web0", "action": "create_tap", "text": "create tap web0"}
    assert json.loads(evertap("plan", "--json")[1]) == {"actions": [step]}
    service.known.clear()
    assert json.loads(evertap("plan", "--json")[1]) == {"actions": []}
    assert evertap("plan")[1] == "Nothing to do.\n"


def test_args_prints_one_line_for_the_shell(evertap: Shell, service: FakeService) -> None:
    code, out, _ = evertap("args", "web0", "web1")
    wanted = ["-netdev", "tap,id=web0,x=a b", "-netdev", "tap,id=web1,x=a b"]
    assert code == 0
    assert out.count("\n") == 1
    assert shlex.split(out) == wanted
    assert json.loads(evertap("args", "web0", "web1", "--json")[1]) == wanted


def test_events_prints_one_object_a_line(evertap: Shell, service: FakeService) -> None:
    code, out, _ = evertap("events", "--json", "--nic", "web0")
    assert code == 0
    assert service.calls == [("history", "web0")]
    base = {"time": "2026-11-22T10:00:00.000000+00:00", "nic": "web0", "event": "connected", "uplink": "eth0"}
    assert [json.loads(line) for line in out.splitlines()] == [
        base | {"reason": "1", "latency_ms": 0.31},
        base | {"reason": "2"},
    ]
    assert evertap("events")[1] == (
        "2026-11-22T10:00:00.000000+00:00 web0 connected (eth0) 1 [0.31 ms]\n"
        "2026-11-22T10:00:00.000000+00:00 web0 connected (eth0) 2\n"
    )


def test_wait_prints_the_nic(evertap: Shell, service: FakeService) -> None:
    code, out, _ = evertap("wait", "web0", "--for", "connected", "--timeout", "5", "--json")
    assert (code, json.loads(out)["state"]) == (0, "connected")
    assert evertap("wait", "web0", "--for", "connected")[1] == (
        "web0 is connected to eth0 since 2026-11-22T10:00:00.000000+00:00\n"
    )


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        (["undefine", "web0", "web1"], ("undefine", ["web0", "web1"])),
        (["connect", "web0"], ("connect", "web0")),
        (["disconnect", "web0"], ("disconnect", "web0")),
        (["retarget", "web0", "eth1", "en*"], ("retarget", "web0", ["eth1", "en*"], False)),
        (
            ["retarget", "web0", "--live", "name=eth1,mode=vepa", "bridge=br0"],
            ("retarget", "web0", ["name=eth1,mode=vepa", "bridge=br0"], True),
        ),
        (["attach", "web0", "--qmp", "/vm/web0.qmp"], ("attach", "web0", "/vm/web0.qmp")),
        (["attach", "web0", "--domain", "vm1"], ("attach_domain", "web0", "vm1")),
        (["detach", "web0"], ("detach", "web0")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_changes_reach_the_daemon(
    evertap: Shell, service: FakeService, arguments: list[str], call: tuple[object, ...]
) -> None:
    code, out, err = evertap(*arguments, "--json")
    assert (code, err) == (0, "")
    assert service.calls[0] == call
    names = call[1] if isinstance(call[1], list) else [call[1]]
    assert json.loads(out) == {"nics": names}
    assert evertap(*arguments)[0] == 0


def test_attach_sends_the_whole_path_of_the_socket(evertap: Shell, service: FakeService) -> None:
    code, out, _ = evertap("attach", "web0", "--qmp", "vm/web0.qmp")
    path = f"{evertap.folder}/vm/web0.qmp"
    assert (code, out) == (0, f"web0 is attached to the QEMU at {path}\n")
    assert service.calls[0] == ("attach", "web0", path)


def test_adopt_and_release_take_domains_or_all_of_them(evertap: Shell, service: FakeService) -> None:
    code, out, _ = evertap("adopt", "vm1", "--live")
    assert (code, service.calls) == (0, [("adopt", "vm1", False, True)])
    assert out == "vm1: is adopted (vm0)\n  changes: it changes\n  is lost: its profile\n"
    code, out, _ = evertap("adopt", "vm1", "--dry-run")
    assert out.endswith("  is lost: its profile\n--- a\n+++ b\n\n")
    service.calls.clear()
    code, out, _ = evertap("release", "--all", "--json")
    assert [call[1] for call in service.calls] == ["vm1", "vm2"]
    assert [view["domain"] for view in json.loads(out)["domains"]] == ["vm1", "vm2"]
    assert evertap("adopt")[0] == 2
    assert evertap("adopt", "vm1", "--all")[0] == 2


def test_the_hook_is_installed_beside_others_and_removed(evertap: Shell) -> None:
    hooks = evertap.folder / "hooks"
    code, out, _ = evertap("libvirt-setup", "--hooks-dir", str(hooks))
    hook = hooks / "qemu.d" / "evertap"
    assert (code, hook.stat().st_mode & 0o777) == (0, 0o755)
    assert str(hook) in out
    assert evertap("libvirt-setup", "--hooks-dir", str(hooks), "--remove")[0] == 0
    assert not hook.exists()
    hook.write_text("#!/bin/sh\n# somebody else's\n")
    code, _, err = evertap("libvirt-setup", "--hooks-dir", str(hooks))
    assert (code, "was not made by evertap" in err) == (1, True)
    assert "somebody else" in hook.read_text()


def test_an_old_libvirts_own_hook_is_kept_called_and_put_back(
    evertap: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools, hooks = evertap.folder / "bin", evertap.folder / "hooks"
    tools.mkdir()
    hooks.mkdir()
    _script(tools / "virsh", "echo 6.4.0")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    hook = hooks / "qemu"
    _script(hook, 'echo "theirs: $1 $(cat)"; exit 3')
    before = hook.read_text()
    for _ in range(2):
        assert evertap("libvirt-setup", "--hooks-dir", str(hooks))[0] == 0
        done = subprocess.run(
            [hook, "vm1", "stopped", "end", "-"],
            input="<domain/>",
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (3, "theirs: vm1 <domain/>\n")
    assert evertap("libvirt-setup", "--hooks-dir", str(hooks), "--remove")[0] == 0
    assert hook.read_text() == before
    assert [path.name for path in hooks.iterdir()] == ["qemu"]


def _script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_the_hook_never_stops_a_vm(evertap: Shell) -> None:
    for operation in ("prepare", "start", "release", "nonsense"):
        with evertap.start("libvirt-hook", "vm1", operation, "begin", "-") as process:
            assert process.wait(20) == 0


def test_define_sends_files_by_their_names(evertap: Shell, service: FakeService, web0: Path) -> None:
    (evertap.folder / "sub").mkdir()
    (evertap.folder / "sub" / "web1.toml").write_text("# ü\n")
    code, out, _ = evertap("define", "web0.toml", "sub/web1.toml", "--json")
    assert code == 0
    assert json.loads(out) == {"nics": ["web0", "web1"]}
    assert service.calls == [("define", {"web0": GOOD, "web1": "# ü\n"})]


# Exit codes

ON_A_NIC = [
    ["undefine", "web7"],
    ["show", "web7"],
    ["connect", "web7"],
    ["disconnect", "web7"],
    ["retarget", "web7", "eth0"],
    ["attach", "web7", "--qmp", "/vm/web7.qmp"],
    ["detach", "web7"],
    ["args", "web7"],
    ["wait", "web7", "--for", "connected"],
    ["events", "--nic", "web7"],
    ["events", "--follow", "--nic", "web7"],
]
REMOTE = [["list"], ["uplinks"], ["plan"], ["events"], ["define", "web0.toml"], *ON_A_NIC]


@pytest.mark.parametrize("arguments", REMOTE, ids=" ".join)
def test_without_a_daemon_it_is_3(evertap: Shell, web0: Path, arguments: list[str]) -> None:
    code, out, err = evertap(*arguments)
    assert (code, out) == (3, "")
    assert err == (
        f"evertap: no evertap daemon is reachable at {evertap.runtime}/evertap.sock: No such file or "
        "directory. Start it: evertap daemon\n"
    )


@pytest.mark.parametrize("arguments", ON_A_NIC, ids=" ".join)
def test_no_such_nic_is_4(evertap: Shell, service: FakeService, arguments: list[str]) -> None:
    code, out, err = evertap(*arguments, "--json")
    assert (code, out) == (4, "")
    assert json.loads(err) == {
        "error": "no_such_nic",
        "message": 'no NIC named "web7"; `evertap list` shows those that there are',
    }


@pytest.mark.parametrize("arguments", REMOTE, ids=" ".join)
def test_what_fails_is_1(evertap: Shell, service: FakeService, web0: Path, arguments: list[str]) -> None:
    service.error = EvertapError("the disk is full")
    assert evertap(*arguments) == (1, "", "evertap: the disk is full\n")


def test_too_late_is_5(evertap: Shell, service: FakeService) -> None:
    code, out, err = evertap("wait", "web1", "--for", "connected", "--timeout", "0.1", "--json")
    assert (code, out) == (5, "")
    assert json.loads(err) == {
        "error": "timed_out",
        "message": 'NIC "web1" is waiting, not connected, after 0.1 s: eth0 is the first usable uplink',
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["list", "extra"],
        ["list", "--nothing"],
        ["show"],
        ["show", "web0", "web1"],
        ["undefine"],
        ["define"],
        ["connect"],
        ["connect", "web0", "web1"],
        ["retarget", "web0"],
        ["attach"],
        ["attach", "web0"],
        ["attach", "web0", "--qmp", "a", "--domain", "b"],
        ["detach"],
        ["args"],
        ["run"],
        ["run", "--nic", "web0"],
        ["run", "--nothing"],
        ["wait", "web0"],
        ["wait", "web0", "--for", "happy"],
        ["wait", "web0", "--for", "connected", "--timeout", "-1"],
        ["wait", "web0", "--for", "connected", "--timeout", "nan"],
        ["plan", "web0"],
        ["--nothing"],
        ["daemon", "extra"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(evertap: Shell, arguments: list[str]) -> None:
    code, out, err = evertap(*arguments)
    assert (code, out) == (2, "")
    assert "Error: " in err
    code, _, err = evertap(*arguments, "--json")
    assert (code, json.loads(err)["error"]) == (2, "usage")


def test_bad_definition_is_2_and_names_the_file_as_it_was_given(
    evertap: Shell, service: FakeService, web0: Path
) -> None:
    (evertap.folder / "sub").mkdir()
    (evertap.folder / "sub" / "web1.toml").write_text("bad")
    assert evertap("define", "web0.toml", "sub/web1.toml") == (
        2,
        "",
        "evertap: sub/web1.toml: mac: found bad; allowed: good\n",
    )
    code, _, err = evertap("define", "sub/web1.toml", "--json")
    assert code == 2
    assert json.loads(err) == {
        "error": "bad_definition",
        "message": "sub/web1.toml: mac: found bad; allowed: good",
        "file": "sub/web1.toml",
        "field": "mac",
        "problem": "found bad; allowed: good",
    }
    code, _, err = evertap("retarget", "web0", "bad")
    assert (code, err) == (2, "evertap: web0.toml: uplinks[0]: found bad\n")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["gone.toml"], "gone.toml: cannot be read: No such file or directory"),
        (["folder.toml"], "folder.toml: cannot be read: Is a directory"),
        (["latin.toml"], "latin.toml: is not UTF-8: found byte 0xe9 at offset 5. Save it as UTF-8"),
        (["zero.toml"], "zero.toml: found more than 64 KiB; it is a few lines"),
        (["web0.txt"], "web0.txt: the file has to be named NAME.toml, after the NIC. Rename it"),
        (
            ["web0.toml", "folder.toml/web0.toml"],
            'folder.toml/web0.toml: "web0" is defined by two of these files. Leave one out',
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_file_that_cannot_be_sent_is_2(
    evertap: Shell, service: FakeService, web0: Path, files: list[str], message: str
) -> None:
    (evertap.folder / "folder.toml").mkdir()
    (evertap.folder / "folder.toml" / "web0.toml").write_text(GOOD)
    (evertap.folder / "latin.toml").write_bytes(b"# caf\xe9")
    (evertap.folder / "zero.toml").symlink_to("/dev/zero")
    assert evertap("define", *files) == (2, "", f"evertap: {message}\n")
    assert service.calls == []


def test_daemon_gets_the_folders_and_its_failure_is_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[object] = []

    def refuse(*arguments: object, **options: object) -> None:
        given.extend(arguments[:3])
        raise EvertapError("another evertap daemon is running")

    # A real daemon would go to work in the namespace of the tests.
    monkeypatch.setitem(sys.modules, "evertap.daemon", SimpleNamespace(run=refuse))
    monkeypatch.chdir(tmp_path)
    folders = ["--config-dir", "a", "--runtime-dir", "b", "--state-dir", "/c"]
    assert run([*folders, "daemon", "--json"]) == 1
    assert given == [tmp_path / "a", tmp_path / "b", Path("/c")]
    told = {"error": "failed", "message": "another evertap daemon is running"}
    assert json.loads(capsys.readouterr().err) == told


def test_reading_only_is_1_and_says_who_may(
    evertap: Shell, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evertap.api.peer.Peer.may_change", lambda *_: False)
    code, _, err = evertap("disconnect", "web0", "--json")
    assert code == 1
    assert json.loads(err)["error"] == "permission_denied"


# Options before the verb


def test_folders_by_option_win_over_the_environment(evertap: Shell, service: FakeService) -> None:
    runtime = str(evertap.runtime)
    evertap.runtime = evertap.folder / "nowhere"
    assert evertap("list")[0] == 3
    assert evertap("--runtime-dir", runtime, "--config-dir", "x", "--state-dir", "y", "list")[0] == 0
    assert evertap("--runtime-dir", os.path.relpath(runtime, evertap.folder), "list")[0] == 0


def test_version_and_help(evertap: Shell) -> None:
    assert re.fullmatch(r"evertap, version \d+\.\d+\.\d+\n", evertap("--version")[1])
    code, out, _ = evertap("--help")
    assert code == 0
    verbs = ["define", "undefine", "list", "show", "uplinks", "connect", "disconnect", "retarget", "args"]
    for verb in [*verbs, "attach", "detach", "run", "daemon", "plan", "wait", "events"]:
        assert f"\n  {verb} " in out
        code, page, _ = evertap(verb, "--help")
        assert code == 0
        assert "--json" in page


def test_help_loads_nothing_slow(evertap: Shell) -> None:
    loaded = subprocess.run(
        ["python3", "-c", "import sys; from evertap.cli.main import run; run(['--help']); "
         "print(*sys.modules, file=sys.stderr)"],
        env=evertap.environment | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=True,
    ).stderr.split()  # fmt: skip
    assert not {"asyncio", "asyncvarlink", "rich", "msgspec", "tomlkit"} & set(loaded)


# For people


def test_list_is_aligned_text_when_piped(evertap: Shell, service: FakeService) -> None:
    code, out, _ = evertap("list")
    assert code == 0
    assert out == (
        "NIC   STATE      UPLINK  MAC                WHY\n"
        "web0  connected  eth0    52:54:00:00:00:01  eth0 is the first usable uplink\n"
        "web1  waiting    -       52:54:00:00:00:01  eth0 is the first usable uplink\n"
    )
    service.known.clear()
    assert evertap("list")[1] == "No NICs are defined. Add one: evertap define NAME.toml\n"


def test_show_is_a_page(evertap: Shell, service: FakeService) -> None:
    service.known["web0"] = view("web0", problem="web0.toml: mac: missing", live=True)
    code, out, _ = evertap("show", "web0")
    assert code == 0
    assert out == (
        "web0 is connected to eth0 since 2026-11-22T10:00:00.000000+00:00\n"
        "eth0 is the first usable uplink\n"
        "The last good definition is in force, as the file was refused: web0.toml: mac: missing\n"
        "\n"
        "MAC      52:54:00:00:00:01\n"
        "backend  tap\n"
        "mode     bridge\n"
        "tap      web0\n"
        "uplinks  eth0 mac=52:54:00:00:00:09 (running state only)\n"
        "outages  2\n"
        "\n"
        "UPLINK                 INTERFACE  MODE    USABLE  WHY\n"
        "eth0                   eth0       bridge  yes\n"
        "mac=52:54:00:00:00:09  -          vepa    no      no such interface\n"
    )


def test_uplinks_for_people(evertap: Shell, service: FakeService) -> None:
    assert evertap("uplinks")[1] == (
        "UPLINK  KIND  LINK     MAC                MTU   NICS  STAND-BY  WANTED BY\n"
        "eth0    -     carrier  02:00:00:00:00:01  1500  web0  web1      web0 web1\n"
    )


STRANGE = "[red]\x1b[2J\udcff[/x]"


def on_terminal(shell: Shell, *arguments: str, **environment: str) -> str:
    """What a person sees."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        ["python3", "-m", "evertap", *arguments],
        env=shell.environment
        | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TERM": "xterm-256color"}
        | environment,
        stdout=follower,
    ) as process:
        os.close(follower)
        data = b""
        try:
            while part := os.read(leader, 4096):
                data += part
        except OSError:  # EIO: the other end has gone
            pass
        os.close(leader)
    assert process.returncode == 0
    return data.decode()


def test_colours_are_for_terminals_and_only_if_wanted(evertap: Shell, service: FakeService) -> None:
    for arguments in (["list"], ["show", "web0"]):
        assert "\x1b[32mconnected" in on_terminal(evertap, *arguments)
        assert "\x1b[3" not in on_terminal(evertap, *arguments, NO_COLOR="1")
        assert "\x1b" not in evertap(*arguments)[1]


def test_strange_names_print_literally(evertap: Shell, service: FakeService) -> None:
    service.known["web0"] = view(
        uplink=STRANGE, reason=STRANGE, candidates=[CandidateView(STRANGE, STRANGE, "bridge", False, "")]
    )
    for arguments in (["list"], ["show", "web0"]):
        assert "[red]\\x1b[2J\\udcff[/x]" in on_terminal(evertap, *arguments)
        assert "[red]\\x1b[2J\\udcff[/x]" in evertap(*arguments)[1]
        assert json.loads(evertap(*arguments, "--json")[1])


# Following


@contextmanager
def following(shell: Shell, service: FakeService, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with shell.start("events", "--follow", *arguments) as process:
        try:
            deadline = time.monotonic() + 20
            while not service.following:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


def test_follow_prints_each_event_at_once_and_ctrl_c_ends_it_quietly(
    evertap: Shell, service: FakeService
) -> None:
    with following(evertap, service, "--json") as process:
        assert process.stdout
        for number in range(3):
            service.happens(event(number))
            assert json.loads(process.stdout.readline())["reason"] == str(number)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
        assert process.returncode == 130
        assert err.strip() == ""


def test_a_closed_pipe_ends_it_quietly(evertap: Shell, service: FakeService) -> None:
    with following(evertap, service) as process:
        assert process.stdout
        process.stdout.close()
        process.stdout = None
        deadline = time.monotonic() + 20
        while process.poll() is None:
            assert time.monotonic() < deadline
            service.happens(event(1))
            time.sleep(0.02)
        assert process.communicate()[1] == ""


@pytest.mark.parametrize("verb", ["list", "show web0", "uplinks", "list --json", "--help"])
def test_a_pipe_that_nobody_reads_is_no_traceback(evertap: Shell, service: FakeService, verb: str) -> None:
    read, write = os.pipe()
    os.close(read)
    process = evertap.start(*verb.split(), stdout=write)
    os.close(write)
    assert process.communicate(timeout=20)[1] == ""
