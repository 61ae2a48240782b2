"""A QMP server that does as it is told: like QEMU, or as badly as can be."""

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

GREETING: dict[str, Any] = {
    "QMP": {
        "version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""},
        "capabilities": ["oob"],
    }
}
COMMANDS = (
    *("query-version", "query-commands", "human-monitor-command", "query-rx-filter", "query-pci", "getfd"),
    *("closefd", "netdev_add", "netdev_del", "device_add", "device_del", "set_link", "announce-self"),
)
RX_FILTER = {
    "name": "",
    "promiscuous": False,
    "multicast": "normal",
    "multicast-overflow": False,
    "main-mac": "52:54:00:12:34:56",
    "multicast-table": ["33:33:00:00:00:01", "01:00:5e:00:00:01"],
}


class QemuError(Exception):
    """QEMU's error: class and words."""


class Received(NamedTuple):
    """A command; `files` are the inodes of the descriptors that came with it."""

    command: str
    arguments: dict[str, Any]
    files: list[int]


class Peer:
    """The one client that is being served."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = b""
        self._files: list[int] = []

    def send(self, *messages: Mapping[str, Any]) -> None:
        self.send_raw(b"".join(json.dumps(message).encode() + b"\r\n" for message in messages))

    def send_raw(self, data: bytes) -> None:
        self._sock.sendall(data)

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next command and the inodes that came with it; None at the end."""
        while True:
            # qemu.qmp ends a message with nothing at all, as QMP allows.
            text = self._buffer.decode().lstrip()
            if text:
                with suppress(json.JSONDecodeError):
                    message, end = json.JSONDecoder().raw_decode(text)
                    self._buffer = text[end:].encode()
                    files, self._files = self._files, []
                    return message, files
            data, descriptors, _, _ = socket.recv_fds(self._sock, 65536, 8)
            for descriptor in descriptors:
                self._files.append(os.fstat(descriptor).st_ino)
                os.close(descriptor)
            if not data:
                return None
            self._buffer += data

    def hang_up(self) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)


class FakeQmp:
    """Serves one client after the other, in a thread. Keeps netdevs as QEMU does."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.received: list[Received] = []
        self.netdevs: dict[str, dict[str, Any]] = {}
        self.devices: dict[str, dict[str, Any]] = {}
        self.files: dict[str, int] = {}  # by getfd's name, the inode
        self.commands: tuple[str, ...] = COMMANDS
        self.greet: Callable[[Peer], None] = lambda peer: peer.send(GREETING)
        # May answer in its own way (True), or leave it to us.
        self.misbehave: Callable[[Peer, Received], bool] = lambda peer, received: False
        self.answers: dict[str, Any] = {"query-rx-filter": [RX_FILTER], "query-pci": []}
        self.clients = 0
        self.peer: Peer | None = None
        self._going = threading.Event()  # cleared: nothing is done, as after SIGSTOP
        self._going.set()
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def start(self, listen: bool = True) -> None:
        Path(self.path).unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        if listen:
            self.listen()

    def listen(self) -> None:
        assert self._listener is not None
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._run, args=(self._listener,), daemon=True)
        self._thread.start()

    def stop(self, leave_file: bool = False) -> None:
        self._going.set()
        if self._listener is None:
            return
        if not leave_file:
            Path(self.path).unlink(missing_ok=True)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        if self.peer is not None:
            self.peer.hang_up()
        if self._thread is not None:
            self._thread.join(5)
        self._listener.close()
        self._listener = self._thread = None

    def freeze(self) -> None:
        self._going.clear()

    def thaw(self) -> None:
        self._going.set()

    def event(self, name: str, /, **data: Any) -> None:
        assert self.peer is not None
        self.peer.send({"event": name, "data": data, "timestamp": {"seconds": 0, "microseconds": 0}})

    def names(self) -> list[str]:
        """The commands received so far, without those that only ask."""
        quiet = ("query-", "human-", "qmp_")
        return [received.command for received in self.received if not received.command.startswith(quiet)]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock, suppress(OSError):
                self._going.wait()
                self.clients += 1
                self.peer = Peer(sock)
                self._serve(self.peer)
            self.peer = None

    def _serve(self, peer: Peer) -> None:
        self.greet(peer)
        while (message := peer.receive()) is not None:
            self._going.wait()
            command, ident = str(message[0].get("execute")), message[0].get("id")
            received = Received(command, dict(message[0].get("arguments") or {}), message[1])
            self.received.append(received)
            try:
                if command != "qmp_capabilities" and self.misbehave(peer, received):
                    continue
                answer = {"return": self._carry_out(received)}
            except QemuError as error:
                answer = {"error": {"class": error.args[0], "desc": error.args[1]}}
            peer.send(answer if ident is None else {**answer, "id": ident})

    def _carry_out(self, received: Received) -> object:
        command, arguments, files = received
        given = self.answers.get(command)
        if isinstance(given, Exception):
            raise given
        if given is not None:
            return given
        ident = str(arguments.get("id"))
        match command:
            case "query-version":
                return GREETING["QMP"]["version"]
            case "query-commands":
                return [{"name": name} for name in self.commands]
            case "human-monitor-command":
                return self._info_network()
            case "getfd":
                self.files[arguments["fdname"]] = files.pop()
            case "netdev_add":
                if ident in self.netdevs:
                    raise QemuError("GenericError", f"Duplicate ID '{ident}'")
                self.netdevs[ident] = arguments
                if "fd" in arguments:
                    arguments["inode"] = self.files.pop(arguments["fd"])
            case "netdev_del":
                if self.netdevs.pop(ident, None) is None:
                    raise QemuError("DeviceNotFound", f"Device '{ident}' not found")
            case "closefd":
                if self.files.pop(arguments["fdname"], None) is None:
                    raise QemuError(
                        "GenericError", f"File descriptor named '{arguments['fdname']}' not found"
                    )
            case "device_add":
                self.devices[ident] = arguments
            case "device_del":
                if ident not in self.devices:
                    raise QemuError("DeviceNotFound", f"Device '{ident}' not found")
        return {}

    def _info_network(self) -> str:
        lines = [f"{name}: index=0,type=nic,model=virtio-net-pci" for name in self.devices]
        lines += [f" \\ {name}: index=0,type={netdev['type']},x" for name, netdev in self.netdevs.items()]
        return "".join(f"{line}\r\n" for line in lines)


_EVENT = {"event": "NIC_RX_FILTER_CHANGED", "data": {"name": "evertap-web0", "path": "/x"}, "timestamp": {}}
_FLOOD = (json.dumps(_EVENT).encode() + b"\r\n") * 100_000


def flood(peer: Peer) -> None:
    """100,000 events."""
    with suppress(OSError):
        peer.send_raw(_FLOOD)


def _main(good: str, bad: str) -> None:
    """Two QEMUs: one of them answers announce-self by a flood."""

    def attack(peer: Peer, received: Received) -> bool:
        if received.command == "announce-self":
            flood(peer)
        return False

    one, other = FakeQmp(good), FakeQmp(bad)
    other.misbehave = attack
    other.devices = {"evertap-web0": {}}
    one.start()
    other.start()
    threading.Event().wait()


if __name__ == "__main__":
    _main(*sys.argv[1:])
