"""A trial whose daemon runs as evertap.service runs it: a user of its own, with the unit's capabilities."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from evertap.lab.netns import Namespace
from evertap.lab.trial import Trial

from . import unit

USER = 4242
GROUP = 4343
"""Of the group `evertap`, which only the daemon knows of."""

# What systemd would do by ProtectSystem=, ProtectKernelTunables= and ReadWritePaths=. Python and the sources
# may lie where only root comes.
_MOUNTS = """
set -e
cd "$HERE"
mount --bind "$HERE" "$HERE"
mount --bind "$PREFIX" venv
mount --bind "$SOURCES" src
mount --bind "$TESTS" tests
mount --bind group /etc/group
mount --bind /proc/sys /proc/sys
for family in ipv4 ipv6; do mount --bind /proc/sys/net/$family/conf /proc/sys/net/$family/conf; done
mount -o remount,bind,ro /proc/sys
mount -o remount,bind,ro /
export PYTHONPATH="$HERE/src" PYTHONDONTWRITEBYTECODE=1
cd "$HERE"
exec "$@"
"""


class ConfinedTrial(Trial):
    """Its daemon has the unit's user, capabilities, file systems, and (`filtered`) system calls.

    `without`: capabilities that it lacks; `also`: what it has besides; `unchecked`: it does not look whether
    it has them.
    """

    def __init__(
        self,
        namespace: Namespace,
        *,
        user: int = USER,
        without: Sequence[str] = (),
        also: Sequence[str] = (),
        unchecked: bool = False,
        filtered: bool = True,
    ) -> None:
        names = [name for name in unit.capabilities() if name not in without]
        kept = ",".join(f"+{name}" for name in (*names, *also))
        settings = {
            "unchecked": unchecked,
            "calls": unit.system_call_numbers() if filtered else [],
            "families": unit.values("RestrictAddressFamilies")[0],
        }
        super().__init__(namespace)
        self.path.chmod(0o711)
        for name in ("venv", "src", "tests", "config", "config/nics.d"):
            (self.path / name).mkdir()
        for name in ("runtime", "state"):
            (self.path / name).mkdir()
            os.chown(self.path / name, user, user)
        (self.path / "group").write_text(f"{Path('/etc/group').read_text()}evertap:x:{GROUP}:\n")
        python = Path(sys.executable)
        if python.is_relative_to(sys.prefix):
            python = self.path / "venv" / python.relative_to(sys.prefix)
        here = Path(__file__).parent
        self._before = [
            *("env", f"HERE={self.path}", f"PREFIX={sys.prefix}", f"TESTS={here}"),
            f"SOURCES={here.parents[1] / 'src'}",
            *("unshare", "--mount", "--propagation", "slave", "sh", "-c", _MOUNTS, "sh"),
            *("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs"),
            *(f"--inh-caps=-all,{kept}", f"--ambient-caps=-all,{kept}", f"--bounding-set=-all,{kept}", "--"),
            *(str(python), str(self.path / "tests" / "confined.py"), json.dumps(settings)),
        ]

    @property
    def daemon_command(self) -> list[str]:
        python = 3  # `python -m evertap`
        return [*self._before, *super().daemon_command[python:]]
