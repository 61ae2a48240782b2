"""A client of the daemon's API, for the command line and for programs that embed evertap."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import msgspec
from asyncvarlink import (
    FileDescriptorArray,
    VarlinkBaseProtocol,
    VarlinkClientProtocol,
    VarlinkMethodCall,
    VarlinkMethodReply,
    connect_unix_varlink,
)

from evertap.api import HISTORY_PAGE, SOCKET
from evertap.api.errors import NotReachableError, PermissionDeniedError
from evertap.model.errors import DefinitionError, EvertapError, NoSuchNicError
from evertap.model.views import ActionView, AdoptionView, EventView, HistoryPage, NicView, UplinkView

PATIENCE: Final = 60.0
"""Seconds for an answer; a daemon that needs longer is not reachable."""

_VERSIONS: Final = "Are daemon and client of one version? Restart the daemon"

_T = TypeVar("_T")


@asynccontextmanager
async def connect(runtime_dir: Path) -> AsyncIterator[Client]:
    """Connect to the daemon that serves in this runtime folder (NotReachableError)."""
    path = runtime_dir / SOCKET
    try:
        transport, protocol = await connect_unix_varlink(VarlinkClientProtocol, path)
    except OSError as error:
        raise NotReachableError(
            f"no evertap daemon is reachable at {path}: {error.strerror or error}. Start it: evertap daemon"
        ) from error
    try:
        yield Client(protocol)
    finally:
        # Nobody waits for replies any more: asyncvarlink must not complain that nobody takes their errors.
        transport.set_protocol(VarlinkBaseProtocol())
        transport.abort()
        await transport.closed_future


class Client:
    """The daemon's operations (api.service.Service), over one connection: one call at a time.

    Everything raises NoSuchNicError, DefinitionError, PermissionDeniedError, NotReachableError, or
    EvertapError for whatever else failed.
    """

    def __init__(self, protocol: VarlinkClientProtocol) -> None:
        self._protocol = protocol

    async def nics(self) -> list[NicView]:
        """All NICs, in order of their names."""
        return await self._ask("Nics", list[NicView])

    async def nic(self, name: str) -> NicView:
        """One NIC."""
        return await self._ask("Nic", NicView, name=name)

    async def uplinks(self) -> list[UplinkView]:
        """The host interfaces and who uses them."""
        return await self._ask("Uplinks", list[UplinkView])

    async def plan(self) -> list[ActionView]:
        """What the daemon would do now."""
        return await self._ask("Plan", list[ActionView])

    async def define(self, texts: dict[str, str]) -> None:
        """Add or replace definitions (NAME -> TOML text), all or none."""
        await self._tell("Define", texts=texts)

    async def undefine(self, names: Sequence[str]) -> None:
        """Remove definitions, all or none."""
        await self._tell("Undefine", names=list(names))

    async def connect(self, name: str) -> None:
        """End an administrative disconnection."""
        await self._tell("Connect", name=name)

    async def disconnect(self, name: str) -> None:
        """Disconnect the NIC until it is connected again."""
        await self._tell("Disconnect", name=name)

    async def retarget(self, name: str, uplinks: Sequence[str], *, live: bool = False) -> None:
        """New uplinks for a NIC; `live`: for the running state alone."""
        await self._tell("Retarget", name=name, uplinks=list(uplinks), live=live)

    async def attach(self, name: str, qmp: str) -> None:
        """Plug the NIC's device into the running QEMU behind a QMP socket (its absolute path)."""
        await self._tell("Attach", name=name, qmp=qmp)

    async def detach(self, name: str) -> None:
        """Unplug the NIC's device from its running QEMU; the definition stays."""
        await self._tell("Detach", name=name)

    async def arguments(
        self,
        names: Sequence[str],
        descriptors: Mapping[str, Sequence[int]] | None = None,
        *,
        vhost: bool = True,
    ) -> list[str]:
        """The QEMU arguments for NICs.

        `descriptors`: by NIC, the numbers that its tap's open queues have in QEMU's process; of other taps
        QEMU gets the name. `vhost`: QEMU may use it, if the host has it.
        """
        return await self._ask(
            "Arguments", list[str], names=list(names), descriptors=descriptors, vhost=vhost
        )

    async def open_tap(self, name: str) -> list[int]:
        """Descriptors of all queues of the NIC's tap, for the caller to close; not inheritable."""
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            reply, arrived = await self._answer(_call("OpenTap", {"name": name}), PATIENCE, taken)
            return _descriptors(_value(reply, list[int]), arrived)
        finally:
            taken.set_result(None)  # what was not taken is closed

    async def wait(
        self,
        name: str,
        state: str,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> NicView:
        """The NIC once it is in that state; TimeoutError after `timeout` seconds."""
        call = _call("Wait", {"name": name, "state": state, "timeout": timeout})
        reply, _ = await self._answer(call, None)
        return _value(reply, NicView)

    async def attach_domain(self, name: str, domain: str) -> None:
        """Give a libvirt domain, running or not, an interface on the NIC's tap."""
        await self._tell("AttachDomain", name=name, domain=domain)

    async def adopt(self, domain: str, *, dry_run: bool = False, live: bool = False) -> AdoptionView:
        """Turn a libvirt domain's direct interfaces into evertap's."""
        return await self._ask("Adopt", AdoptionView, domain=domain, dry_run=dry_run, live=live)

    async def release(self, domain: str, *, dry_run: bool = False, live: bool = False) -> AdoptionView:
        """Give a libvirt domain its direct interfaces back."""
        return await self._ask("Release", AdoptionView, domain=domain, dry_run=dry_run, live=live)

    async def domains(self) -> list[str]:
        """The names of libvirt's domains."""
        return await self._ask("Domains", list[str])

    async def prepare_domain(self, xml: str) -> None:
        """Make sure of the taps of a libvirt domain that is about to start."""
        await self._tell("PrepareDomain", xml=xml)

    async def history(self, name: str | None = None) -> list[EventView]:
        """What happened to a NIC (None: to all) since the daemon started, oldest first."""
        return await self._ask("History", list[EventView], name=name)

    async def nic_history(self, name: str, limit: int | None = None) -> list[EventView]:
        """What happened to a NIC, also to one that is no more: all, or the last `limit`, oldest first."""
        left = limit or 2**31
        events: list[EventView] = []
        before: int | None = None
        while left > 0:
            size = min(left, HISTORY_PAGE)
            page = await self._ask("NicHistory", HistoryPage, name=name, before=before, limit=size)
            events[:0] = page.events
            before = page.earlier
            left -= len(page.events)
            if before is None:
                break
        return events[-limit:] if limit else events

    async def follow(self, name: str | None = None) -> AsyncGenerator[EventView, None]:
        """What happens to a NIC (None: to any) from now on. Takes the connection for itself."""
        call = _call("Follow", {"name": name}, more=True)
        try:
            async with aclosing(self._protocol.call_more(call)) as replies:
                async for reply, _ in replies:
                    yield _value(reply, EventView)
        except OSError as error:
            raise _gone() from error

    async def _ask(self, method: str, kind: type[_T], **parameters: Any) -> _T:
        reply, _ = await self._answer(_call(method, parameters), PATIENCE)
        return _value(reply, kind)

    async def _tell(self, method: str, **parameters: Any) -> None:
        await self._answer(_call(method, parameters), PATIENCE)

    async def _answer(
        self, call: VarlinkMethodCall, patience: float | None, taken: asyncio.Future[None] | None = None
    ) -> tuple[VarlinkMethodReply, FileDescriptorArray | None]:
        """The reply, and the descriptors that came with it, which are there until `taken` is done."""
        try:
            async with asyncio.timeout(patience):
                answer = await self._protocol.call(call, replyfdsdone=taken)
        except TimeoutError:
            raise NotReachableError(f"the evertap daemon has not answered for {patience:g} s") from None
        except OSError as error:
            raise _gone() from error
        assert answer is not None  # as it is of calls that are not one-way
        reply, descriptors = answer
        if reply.error is not None:
            _raise(reply.error, reply.parameters)
        return reply, descriptors


def _call(method: str, parameters: dict[str, Any], *, more: bool = False) -> VarlinkMethodCall:
    return VarlinkMethodCall(f"org.evertap.{method}", parameters, more=more)


def _value(reply: VarlinkMethodReply, kind: type[_T]) -> _T:
    """The only parameter of a reply, or its error."""
    if reply.error is not None:
        _raise(reply.error, reply.parameters)
    try:
        (value,) = reply.parameters.values()
        return msgspec.convert(value, kind)
    except ValueError as error:
        raise EvertapError(f"the daemon's answer is strange ({error}). {_VERSIONS}") from error


def _descriptors(places: list[int], arrived: FileDescriptorArray | None) -> list[int]:
    """Take the descriptors at these places."""
    # The kernel silently leaves out what the process has no room for.
    if arrived is None or sorted(places) != list(range(len(arrived))):
        raise EvertapError(
            f"of {len(places)} descriptors, {len(arrived or ())} arrived: raise the limit of open files"
        )
    numbers = []
    for place in places:
        number = arrived[place].fileno()
        arrived[place].take()
        os.set_inheritable(number, False)  # as Python's own are; recvmsg(2) does not see to it
        numbers.append(number)
    return numbers


def _raise(error: str, parameters: dict[str, Any]) -> NoReturn:
    """The exception that the daemon's error stands for."""
    reason = str(parameters.get("reason", ""))
    match error.removeprefix("org.evertap."):
        case "NoSuchNic":
            raise NoSuchNicError(parameters["name"])
        case "BadDefinition":
            raise DefinitionError(parameters["file"], parameters["field"], parameters["problem"])
        case "TimedOut":
            raise TimeoutError(reason)
        case "PermissionDenied":
            raise PermissionDeniedError(reason)
        case "Failed":
            raise EvertapError(reason)
    raise EvertapError(f"the daemon answered {error} {parameters}. {_VERSIONS}")


def _gone() -> NotReachableError:
    return NotReachableError(
        "the evertap daemon closed the connection: it was stopped, or has as many clients as it takes"
    )
