"""Speaks with the shell on a guest's serial line: a command goes in, its output and exit code come out."""

import base64
import re
import select
import socket
import time

READY = b"evertap-guest: ready\n"


class Console:
    """The near end of a guest's serial line, whose far end is the shell of guest-init.sh."""

    def __init__(self, line: socket.socket) -> None:
        line.setblocking(False)
        self._line = line
        self._buffer = b""
        self._commands = 0

    def wait_ready(self, timeout: float) -> None:
        """Wait until the guest has booted. Raises TimeoutError, or EOFError when its end is closed."""
        self._read_until(re.compile(re.escape(READY)), time.monotonic() + timeout)

    def run(self, command: str, timeout: float) -> tuple[int, str]:
        """Run a shell command, of several lines if need be, and return its exit code and output.

        Standard error is in the output. A command that takes longer than `timeout` seconds is killed in
        the guest and raises TimeoutError; the console stays usable. EOFError as in wait_ready.
        """
        self._commands += 1
        mark = f"evertap-guest: {self._commands}"
        # base64 spares all quoting. A shell of its own, so that no command can end the console's; the
        # standard input is not the line, or a command could swallow what comes next.
        encoded = base64.b64encode(command.encode()).decode()
        self._write(
            f"echo '{mark} begin'; "
            f'timeout -s KILL {timeout:.0f} sh -c "$(echo {encoded} | base64 -d)" < /dev/null 2>&1; '
            f"echo '{mark} end' $?\n",
            time.monotonic() + timeout,
        )
        # The guest's clock gets its time first; the rest is for the way there and back.
        pattern = re.compile(rf"{mark} begin\n(.*?){mark} end (\d+)\n".encode(), re.DOTALL)
        started = time.monotonic()
        output, code = self._read_until(pattern, started + timeout + 5).groups()
        if time.monotonic() - started >= timeout:
            raise TimeoutError(f"{command!r} took more than {timeout} s in the guest")
        return int(code), output.decode(errors="replace")

    def tail(self) -> str:
        """The last that came from the guest and was not understood: for error messages."""
        return self._buffer[-2000:].decode(errors="replace")

    def close(self) -> None:
        """Close the near end."""
        self._line.close()

    def _write(self, text: str, deadline: float) -> None:
        rest = text.encode()
        while rest:
            self._wait(select.POLLOUT, deadline)
            rest = rest[self._line.send(rest) :]

    def _read_until(self, pattern: re.Pattern[bytes], deadline: float) -> re.Match[bytes]:
        while True:
            found = pattern.search(self._buffer)
            if found:
                self._buffer = self._buffer[found.end() :]
                return found
            self._wait(select.POLLIN, deadline)
            try:
                data = self._line.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError("the guest's serial line was closed")
            self._buffer += data

    def _wait(self, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._line, event)
        if not poll.poll(max(0, deadline - time.monotonic()) * 1000):
            raise TimeoutError("the guest's serial line is silent")
