"""One open connection to libvirt, and its events. Its functions are called in a thread (see Threads).

A connection is used by one thread at a time: libvirt's client can lose the wake-up of a second thread, which
then waits until the first one's call returns (seen with 9.0), and has had worse (CVE-2024-4418).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal

import libvirt
import libvirt_qemu

from evertap.libvirt import reading
from evertap.libvirt.threads import RefusedError
from evertap.model.domain_xml import URI

WITH_FILES = 8_002_000
"""The first libvirt with qemuMonitorCommandWithFiles: 8.2.0."""

_KEY = "evertap"  # the prefix that libvirt gives to the namespace

Kind = Literal["changed", "ended", "removed", "kept"]
Heard = Callable[[Kind, str, str], None]
"""Kind, the domain's uuid, and of a device that was removed or that the guest keeps, its alias."""

_OPTIONAL = (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_INVALID_ARG)


class Connection:
    """Opens the connection; raises libvirtError. `close` has to be called, in a thread as well."""

    def __init__(self, uri: str) -> None:
        self._conn = libvirt.open(uri)
        self._events: list[int] = []
        self._listens = False
        self._version = 0

    @classmethod
    def listening(cls, uri: str, heard: Heard, lost: Callable[[str], None]) -> Connection:
        """One with events: `heard` and `lost` are called from whatever thread libvirt likes."""
        made = cls(uri)
        made._listen(heard, lost)
        return made

    def _listen(self, heard: Heard, lost: Callable[[str], None]) -> None:
        try:
            self._version = self._conn.getLibVersion()
            self._conn.registerCloseCallback(_closed, lost)
            self._listens = True
            for event, callback in _CALLBACKS.items():
                try:
                    self._events.append(self._conn.domainEventRegisterAny(None, event, callback, heard))
                except libvirt.libvirtError as error:  # an older libvirt
                    if error.get_error_code() not in _OPTIONAL:
                        raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close it; the callbacks, which hold the connection, first. May be dead already."""
        for event in self._events:
            with suppress(libvirt.libvirtError):
                self._conn.domainEventDeregisterAny(event)
        if self._listens:
            with suppress(libvirt.libvirtError):
                self._conn.unregisterCloseCallback()
        with suppress(libvirt.libvirtError):
            self._conn.close()

    @property
    def alive(self) -> bool:
        """Whether libvirt has not closed it yet, as far as is known."""
        try:
            return bool(self._conn.isAlive())
        except libvirt.libvirtError:
            return False

    def probe(self) -> None:
        """A question that libvirt answers without any QEMU."""
        self._conn.getLibVersion()

    def uuids(self) -> set[str]:
        """All domains."""
        return reading.uuids(self._conn)

    def read(self, wanted: Sequence[str]) -> Any:
        """As reading.read."""
        return reading.read(self._conn, wanted)

    def set_link(self, uuid: str, mac: str, up: bool) -> None:
        """The carrier that the guest sees, of the running domain only."""
        domain = self._conn.lookupByUUIDString(uuid)
        _require_running(domain)
        if xml := reading.with_link(domain.XMLDesc(), mac, up):
            domain.updateDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def attach(self, uuid: str, xml: str, live: bool, config: bool) -> None:
        """Add a device."""
        self._conn.lookupByUUIDString(uuid).attachDeviceFlags(xml, _flags(live, config))

    def detach(self, uuid: str, xml: str, live: bool, config: bool) -> None:
        """Remove a device; returns when the guest has been asked, or after 5 s (libvirt's own limit)."""
        self._conn.lookupByUUIDString(uuid).detachDeviceFlags(xml, _flags(live, config))

    def set_metadata(self, uuid: str, xml: str, live: bool, config: bool) -> None:
        """Replace evertap's element in <metadata>, or remove it."""
        self._conn.lookupByUUIDString(uuid).setMetadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT, xml or None, _KEY, URI, _flags(live, config)
        )

    def alias(self, uuid: str, xml: str) -> str:
        """As reading.alias."""
        return reading.alias(self._conn.lookupByUUIDString(uuid).XMLDesc(), xml)

    def define(self, xml: str) -> str:
        """Define a domain; its uuid."""
        return str(self._conn.defineXML(xml).UUIDString())

    def monitor(self, uuid: str, command: dict[str, Any], descriptor: int | None) -> Any:
        """Run a QMP command; takes the descriptor over."""
        try:
            domain = self._conn.lookupByUUIDString(uuid)
            text = json.dumps(command)
            if descriptor is None:
                answer = libvirt_qemu.qemuMonitorCommand(domain, text, 0)
            else:
                answer, files = libvirt_qemu.qemuMonitorCommandWithFiles(domain, text, [descriptor])
                for file in files:
                    file.close()
        finally:
            if descriptor is not None:
                os.close(descriptor)
        said = json.loads(answer)
        if "error" in said:
            raise RefusedError(str(said["error"].get("desc", said["error"])))
        return said.get("return")

    @property
    def takes_descriptors(self) -> bool:
        """Whether both sides know qemuMonitorCommandWithFiles; of a listening connection."""
        ours = min(libvirt.getVersion(), self._version)
        return ours >= WITH_FILES and hasattr(libvirt_qemu, "qemuMonitorCommandWithFiles")


def _flags(live: bool, config: bool) -> int:
    flags = libvirt.VIR_DOMAIN_AFFECT_LIVE if live else 0
    return int(flags | (libvirt.VIR_DOMAIN_AFFECT_CONFIG if config else 0))


def _require_running(domain: Any) -> None:
    if not domain.isActive():
        raise RefusedError("the domain does not run")


# What libvirt calls. The domains that it gives are let go of at once, in libvirt's thread.


def _closed(_conn: Any, reason: int, lost: Callable[[str], None]) -> None:
    lost(
        "libvirt has ended, or closed the connection"
        if reason == libvirt.VIR_CONNECT_CLOSE_REASON_EOF
        else "the connection to libvirt failed"
    )


def _lifecycle(_conn: Any, domain: Any, event: int, _detail: int, heard: Heard) -> None:
    ended = (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_CRASHED)
    heard("ended" if event in ended else "changed", domain.UUIDString(), "")


def _metadata(_conn: Any, domain: Any, _kind: int, _namespace: str, heard: Heard) -> None:
    heard("changed", domain.UUIDString(), "")


def _rebooted(_conn: Any, domain: Any, heard: Heard) -> None:
    heard("changed", domain.UUIDString(), "")


def _added(_conn: Any, domain: Any, _alias: str, heard: Heard) -> None:
    heard("changed", domain.UUIDString(), "")


def _removed(_conn: Any, domain: Any, alias: str, heard: Heard) -> None:
    heard("removed", domain.UUIDString(), alias)


def _kept(_conn: Any, domain: Any, alias: str, heard: Heard) -> None:
    heard("kept", domain.UUIDString(), alias)


_CALLBACKS = {
    libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE: _lifecycle,
    libvirt.VIR_DOMAIN_EVENT_ID_REBOOT: _rebooted,
    libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE: _metadata,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED: _added,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED: _removed,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED: _kept,
}
