"""What can be asked of a guest that has a shell on its serial line."""

import threading

from evertap.lab.console import Console
from evertap.lab.errors import LabError


class GuestShell:
    """A guest with the shell of guest-init.sh; `_console` is its serial line while it runs."""

    def __init__(self) -> None:
        self._speaking = threading.Lock()
        self._console: Console | None = None

    def sh(self, command: str, timeout: float = 10, check: bool = True) -> str:
        """Run a shell command in the guest and return its output, standard error included.

        Raises LabError when it exits with another code than 0 (unless `check` is off), when it takes
        longer than `timeout` seconds (it is killed then), and when the guest is gone.
        """
        console = self._running()
        try:
            with self._speaking:
                code, output = console.run(command, timeout)
        except (EOFError, TimeoutError, BrokenPipeError) as error:
            raise LabError(f"{command!r} in the guest: {error}\n{console.tail()}") from error
        if check and code:
            raise LabError(f"{command!r} in the guest failed with code {code}: {output.strip()}")
        return output

    def boot_id(self) -> str:
        """A text that is another one after every boot."""
        return self.sh("cat /proc/sys/kernel/random/boot_id").strip()

    def carrier_changes(self, device: str = "eth0") -> int:
        """How often the guest has seen the card's carrier come or go."""
        return int(self.sh(f"cat /sys/class/net/{device}/carrier_changes"))

    def uptime(self) -> float:
        """Seconds since the guest's boot."""
        return float(self.sh("cat /proc/uptime").split()[0])

    def _running(self) -> Console:
        if self._console is None:
            raise LabError("the guest does not run")
        return self._console
