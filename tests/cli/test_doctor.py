"""`evertap doctor` on a real kernel, with things taken away from it."""

from __future__ import annotations

import json
import subprocess
import sys

from evertap.lab.netns import Namespace
from evertap.lab.trial import Trial
from tests.cli.conftest import SRC, Shell

Checks = dict[str, dict[str, str]]

# As another user, who may read the sources wherever they are.
_AS_NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search", "--"),
)
_KERNEL = ("rtnetlink", "tap", "macvlan", "macvtap", "clsact", "bpf(2)", "cls_bpf", "maps read back")


def _doctor(evertap: Shell, namespace: Namespace, *before: str, shell: str = "") -> tuple[int, Checks]:
    """Run it in the namespace, behind the words `before`; `shell` is done first, in a mount namespace."""
    command = [*before, sys.executable, "-m", "evertap", "doctor", "--json"]
    if shell:
        command = ["unshare", "--mount", "sh", "-c", f'{shell} && exec "$@"', "sh", *command]
    process = namespace.popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=evertap.environment,
        cwd=evertap.folder,
    )
    with process:
        out, err = process.communicate(timeout=50)
    assert not err
    checks = json.loads(out)
    assert all(check.keys() == {"name", "result", "found", "remedy"} for check in checks)
    return process.returncode, {check["name"]: check for check in checks}


def _links(namespace: Namespace) -> str:
    return namespace.ip("-o", "link")


def test_all_is_there(evertap: Shell, namespace: Namespace) -> None:
    before = _links(namespace)
    code, checks = _doctor(evertap, namespace)
    assert code == 0
    assert {name: checks[name]["result"] for name in _KERNEL} == dict.fromkeys(_KERNEL, "ok")
    assert checks["capabilities"]["result"] == "ok"
    assert checks["daemon"]["result"] == "warning"
    assert _links(namespace) == before
    assert sorted(evertap.folder.iterdir()) == []


def test_without_the_right_to_load_programs(evertap: Shell, namespace: Namespace) -> None:
    code, checks = _doctor(
        evertap, namespace, "setpriv", "--bounding-set=-sys_admin,-bpf", "--inh-caps=-all", "--"
    )
    assert code == 1
    assert checks["bpf(2)"]["result"] == "broken"
    assert "CAP_BPF" in checks["bpf(2)"]["remedy"]
    assert "CAP_SYS_ADMIN" in checks["capabilities"]["found"]
    assert checks["macvlan"]["result"] == "ok"


def test_without_the_tun_device(evertap: Shell, namespace: Namespace) -> None:
    code, checks = _doctor(evertap, namespace, shell="mount -t tmpfs tmpfs /dev/net")
    assert code == 1
    assert checks["tap"]["result"] == checks["/dev/net/tun"]["result"] == "broken"
    assert "modprobe tun" in checks["tap"]["remedy"]
    assert "mknod" in checks["/dev/net/tun"]["remedy"]
    assert checks["macvlan"]["result"] == checks["cls_bpf"]["result"] == "ok"


def test_without_namespaces_it_says_so(evertap: Shell, namespace: Namespace) -> None:
    none = "echo 0 > /proc/sys/user/max_net_namespaces"
    code, checks = _doctor(
        evertap,
        namespace,
        *("unshare", "--user", "--map-root-user", "sh", "-c", f'{none} && exec "$@"', "sh"),
    )
    assert checks["kernel"]["result"] == "note"
    assert "no private network namespace" in checks["kernel"]["found"]
    assert "macvlan" not in checks
    assert code == 0


def test_as_a_user_it_says_what_it_cannot_know(evertap: Shell, namespace: Namespace) -> None:
    evertap.folder.chmod(0o711)
    code, checks = _doctor(evertap, namespace, *_AS_NOBODY)
    assert code == 0
    assert checks["macvlan"]["result"] in ("ok", "note")
    assert (checks.get("bpf(2)") or checks["kernel"])["remedy"] == "sudo evertap doctor"
    assert checks["capabilities"]["result"] == "note"


def test_with_a_daemon_and_a_bad_definition(namespace: Namespace) -> None:
    namespace.ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
    with Trial(namespace) as trial:
        trial.nics_d.mkdir(parents=True, exist_ok=True)
        (trial.nics_d / "web0.toml").write_text('mac = "52:54:00:00:00:01"\nuplinks = ["eth0"]\n')
        (trial.nics_d / "bad.toml").write_text('mac = "52:54"\nuplinks = ["eth0"]\n')
        trial.start()
        command = ("env", f"PYTHONPATH={SRC}", *trial.command, "doctor")
        told = namespace.run(*command, "--json", check=False)
        text = namespace.run(*command, check=False)
    checks = {check["name"]: check for check in json.loads(told)}
    assert checks["daemon"]["result"] == checks["socket"]["result"] == "ok"
    assert checks["tap settings"]["result"] == "ok"
    assert checks["definition"]["result"] == "broken"
    assert "bad.toml" in checks["definition"]["found"]
    lines = text.splitlines()
    assert lines[0].startswith("broken")
    assert lines[1].lstrip().startswith("→ correct")
    assert lines[-1].startswith("1 broken, ")


def test_the_other_verbs_do_not_load_it(evertap: Shell) -> None:
    script = (
        "import sys; from evertap.cli.main import run; run(['--help']); "
        "sys.exit(any(name.startswith(('evertap.doctor', 'evertap.kernel')) for name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=evertap.environment, capture_output=True, check=False, timeout=30
    )
    assert done.returncode == 0
