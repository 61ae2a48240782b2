"""Pings an address a hundred times a second and tells exactly when nothing came back."""

import itertools
import os
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass
from ipaddress import IPv4Address
from types import TracebackType
from typing import Self

from evertap.lab.frames import ECHO_REPLY, ECHO_REQUEST, icmp_echo
from evertap.lab.netns import Namespace

REPLY_TIMEOUT = 0.5
"""Seconds after which a probe without a reply counts as lost, even if a reply comes later."""

# linux/icmp.h: a mask of the ICMP types that a raw socket is not to receive.
_ICMP_FILTER = 1
_SOL_RAW = 255

# The payload: a token that tells this pinger's replies from all others, and the probe's number, which
# unlike ICMP's own may exceed 65535.
_PAYLOAD = struct.Struct("!8sQ")


@dataclass(slots=True)
class _Probe:
    sent: float
    replied: float | None = None


class Pinger:
    """Pings `address` from `namespace` every `interval` seconds, from `start` to `stop`.

    All times are those of time.monotonic. Memory grows by about 0.1 kB a probe: meant for minutes.
    """

    def __init__(self, namespace: Namespace, address: str = "192.0.2.10", interval: float = 0.01) -> None:
        self._namespace = namespace
        self._address = str(IPv4Address(address))
        self._interval = interval
        self._probes: list[_Probe] = []
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None
        self._wake = -1
        self._stopped_at: float | None = None

    @property
    def sent(self) -> int:
        """How many probes were sent, those that the kernel refused to send included."""
        return len(self._probes)

    def start(self) -> None:
        """Begin to ping. A pinger runs once. Raises OSError if the namespace is gone."""
        if self._thread is not None:
            raise RuntimeError("a pinger runs only once")
        # A socket stays in the namespace in which it was opened, so the thread need not go there.
        with self._namespace.enter():
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)
        raw.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", ~(1 << ECHO_REPLY) & 0xFFFFFFFF))
        wake, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._run, args=(raw, wake), name="pinger", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop pinging; what was counted stays. May be called twice."""
        if self._thread is None or self._wake < 0:
            return
        os.close(self._wake)
        self._wake = -1
        self._thread.join()

    def lost(
        self, since: float | None = None, until: float | None = None, within: float = REPLY_TIMEOUT
    ) -> int:
        """Count the probes sent from `since` to `until` that had no reply `within` so many seconds.

        Without `until` only probes older than that count, as the others may yet be answered.
        With it, all up to that time do: name a time by whose probes no reply is still on its way.
        """
        now = time.monotonic()
        last = now - within if until is None else until
        first = since if since is not None else 0.0
        return sum(
            probe.replied is None or probe.replied - probe.sent > within
            for probe in self._all()
            if first <= probe.sent <= last
        )

    def recent(self, count: int) -> list[bool]:
        """Of the last `count` probes, whether each has been answered yet."""
        with self._news:
            return [probe.replied is not None for probe in self._probes[-count:]]

    def first_reply_after(self, moment: float) -> float | None:
        """When the first reply came to a probe sent after `moment`; None if there is none so far."""
        with self._news:
            return self._first_reply(moment)

    def wait_reply(self, timeout: float) -> float:
        """Wait for the reply to a probe that is yet to be sent, at most `timeout` seconds.

        Returns when it came. Raises TimeoutError.
        """
        moment = time.monotonic()
        with self._news:
            found = self._news.wait_for(lambda: self._first_reply(moment), timeout)
        if found is None:
            raise TimeoutError(f"no reply from {self._address} within {timeout} s")
        return found

    def gap(self, since: float) -> float:
        """The longest silence in seconds from `since` until now (or until `stop`)."""
        end = self._stopped_at or time.monotonic()
        replies = sorted(probe.replied for probe in self._all() if probe.replied is not None)
        moments = [since, *(reply for reply in replies if since < reply < end), max(end, since)]
        return max(later - earlier for earlier, later in itertools.pairwise(moments))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _all(self) -> list[_Probe]:
        with self._news:
            return self._probes.copy()

    def _first_reply(self, moment: float) -> float | None:
        # From the end backwards: what is asked for is always recent.
        first: float | None = None
        for probe in reversed(self._probes):
            if probe.sent <= moment:
                break
            if probe.replied is not None and (first is None or probe.replied < first):
                first = probe.replied
        return first

    def _run(self, raw: socket.socket, wake: int) -> None:
        token = os.urandom(8)
        identifier = int.from_bytes(token[:2], "big")
        poll = select.poll()
        poll.register(raw, select.POLLIN)
        poll.register(wake, select.POLLIN | select.POLLHUP)
        due = time.monotonic()
        try:
            while True:
                pause = due - time.monotonic()
                # poll counts in whole milliseconds; the rest of one is slept after the last of them.
                ready = {descriptor for descriptor, _ in poll.poll(max(0, int(pause * 1000)))}
                if wake in ready:
                    return
                if raw.fileno() in ready:
                    self._receive(raw, token)
                elif 0 < (pause := due - time.monotonic()) < 0.001:
                    time.sleep(pause)
                if time.monotonic() >= due:
                    self._send(raw, token, identifier)
                    # Times are absolute, so that they do not drift; those that were missed are skipped.
                    due = max(due + self._interval, time.monotonic())
        finally:
            self._stopped_at = time.monotonic()
            raw.close()
            os.close(wake)

    def _send(self, raw: socket.socket, token: bytes, identifier: int) -> None:
        with self._news:
            number = len(self._probes)
            self._probes.append(_Probe(time.monotonic()))
        message = icmp_echo(ECHO_REQUEST, identifier, number & 0xFFFF, _PAYLOAD.pack(token, number))
        try:
            raw.sendto(message, (self._address, 0))
        except OSError:
            # No route, no carrier, a full queue: the probe is lost, which is what is being counted.
            return

    def _receive(self, raw: socket.socket, token: bytes) -> None:
        while True:
            try:
                packet = raw.recv(2048)
            except BlockingIOError:
                return
            except OSError:
                # An ICMP error about an earlier probe: it stays lost.
                continue
            now = time.monotonic()
            body = packet[(packet[0] & 15) * 4 + 8 :]
            if len(body) != _PAYLOAD.size:
                continue
            theirs, number = _PAYLOAD.unpack(body)
            if theirs != token:
                continue
            with self._news:
                if self._probes[number].replied is None:
                    self._probes[number].replied = now
                self._news.notify_all()
