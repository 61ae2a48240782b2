"""The varlink interface org.evertap: its methods, types and errors, over a Service."""

# No postponed annotations here: asyncvarlink reads the types of methods and fields at run time.
import asyncio
import logging
import os
from collections.abc import AsyncIterator
from typing import Any, Final, Literal

from asyncvarlink import (
    FileDescriptor,
    TypedVarlinkErrorReply,
    VarlinkErrorReply,
    VarlinkInterface,
    varlinkmethod,
)
from asyncvarlink.serviceerrors import InvalidParameter

from evertap.api import HISTORY_PAGE
from evertap.api.follower import buffered
from evertap.api.peer import GROUP, Peer, Places, is_user
from evertap.api.service import Service
from evertap.model.errors import DefinitionError, EvertapError, NoSuchNicError
from evertap.model.views import ActionView, AdoptionView, EventView, HistoryPage, NicView, UplinkView

_log = logging.getLogger(__name__)

NAME: Final = "org.evertap"
OVER: Final = "the daemon is stopping, or the connection was closed"

State = Literal["connected", "waiting", "disconnected", "failed"]

_DESCRIPTORS_MAX: Final = 253  # in one message: SCM_MAX_FD, net/scm.h
_LONGEST_WAIT: Final = 366 * 86400.0  # seconds; what a client may ask must fit the loop's clock


class NoSuchNic(TypedVarlinkErrorReply, interface=NAME):
    """There is no NIC of that name."""

    class Parameters:
        name: str


class BadDefinition(TypedVarlinkErrorReply, interface=NAME):
    """A definition was refused, whole: which file, which field in it, and what is wrong and allowed."""

    class Parameters:
        file: str
        field: str
        problem: str


class Failed(TypedVarlinkErrorReply, interface=NAME):
    """It could not be done."""

    class Parameters:
        reason: str


class TimedOut(TypedVarlinkErrorReply, interface=NAME):
    """It did not come to pass in the time that was given."""

    class Parameters:
        reason: str


class PermissionDenied(TypedVarlinkErrorReply, interface=NAME):
    """The caller may only read."""

    class Parameters:
        reason: str


def as_reply(error: Exception) -> VarlinkErrorReply:
    """The varlink error that tells a client of an exception."""
    if isinstance(error, VarlinkErrorReply):
        return error
    if isinstance(error, NoSuchNicError):
        return NoSuchNic(name=error.name)
    if isinstance(error, DefinitionError):
        return BadDefinition(file=error.file, field=error.field, problem=error.problem)
    if isinstance(error, TimeoutError):
        return TimedOut(reason=str(error))
    if isinstance(error, EvertapError):
        return Failed(reason=str(error))
    _log.error("a client's call failed", exc_info=error)
    return Failed(
        reason=f"a fault in evertap ({type(error).__name__}: {error}); the daemon's log has it whole"
    )


class EvertapInterface(VarlinkInterface, name=NAME):
    """evertap keeps virtual machines' NICs connected to host interfaces that come and go.

    Everybody may read; root, the daemon's user and members of the group evertap may change things. The
    user whom a NIC's definition names as its owner may also open its tap.
    """

    errors = (NoSuchNic, BadDefinition, Failed, TimedOut, PermissionDenied)

    def __init__(
        self, service: Service, peer: Peer, trusted: bool, over: asyncio.Future[None], followers: Places
    ) -> None:
        """`trusted`: the peer may change things; `over`: it has gone."""
        self._service = service
        self._peer = peer
        self._trusted = trusted
        self._over = over
        self._followers = followers

    @property
    def _changing(self) -> Service:
        if not self._trusted:
            raise PermissionDenied(
                reason=f"user {self._peer.uid} may only read: changes are for root and for members of the "
                f'group "{GROUP}"'
            )
        return self._service

    @varlinkmethod(return_parameter="nics")
    def Nics(self) -> list[NicView]:  # noqa: N802
        """All NICs with their candidates."""
        return self._service.nics()

    @varlinkmethod(return_parameter="nic")
    def Nic(self, *, name: str) -> NicView:  # noqa: N802
        """One NIC with its candidates, and why each is or is not usable."""
        return self._service.nic(name)

    @varlinkmethod(return_parameter="uplinks")
    def Uplinks(self) -> list[UplinkView]:  # noqa: N802
        """The host interfaces and who uses them."""
        return self._service.uplinks()

    @varlinkmethod(return_parameter="actions")
    def Plan(self) -> list[ActionView]:  # noqa: N802
        """What the daemon would do now."""
        return self._service.plan()

    @varlinkmethod
    async def Define(self, *, texts: dict[str, str]) -> None:  # noqa: N802
        """Add or replace definitions (name to TOML text), all or none."""
        await self._changing.define(texts)

    @varlinkmethod
    async def Undefine(self, *, names: list[str]) -> None:  # noqa: N802
        """Remove definitions, all or none."""
        await self._changing.undefine(names)

    @varlinkmethod
    async def Connect(self, *, name: str) -> None:  # noqa: N802
        """End an administrative disconnection."""
        await self._changing.connect(name)

    @varlinkmethod
    async def Disconnect(self, *, name: str) -> None:  # noqa: N802
        """Disconnect a NIC until it is connected again."""
        await self._changing.disconnect(name)

    @varlinkmethod
    async def Retarget(self, *, name: str, uplinks: list[str], live: bool) -> None:  # noqa: N802
        """New uplinks for a NIC, each NAME or KEY=VALUE[,mode=MODE]; live: for the running state alone."""
        await self._changing.retarget(name, uplinks, live)

    @varlinkmethod
    async def Attach(self, *, name: str, qmp: str) -> None:  # noqa: N802
        """Plug a NIC's device into the running QEMU behind a QMP socket, of which this is the path."""
        if not qmp.startswith("/") or "\0" in qmp:
            raise InvalidParameter(parameter="qmp")
        await self._changing.attach(name, qmp)

    @varlinkmethod
    async def Detach(self, *, name: str) -> None:  # noqa: N802
        """Unplug a NIC's device from its running QEMU. The definition stays."""
        await self._changing.detach(name)

    @varlinkmethod(return_parameter="descriptors")
    async def OpenTap(self, *, name: str) -> list[FileDescriptor]:  # noqa: N802
        """Open all queues of a NIC's tap, for a VMM that may not do so itself.

        The answer comes with the descriptors and has their places among them. For those who may change
        things, and for the NIC's owner.
        """
        owner = self._service.owner_of(name)
        # In a thread: a user database behind a network must not hold the loop up.
        if not self._trusted and not await asyncio.to_thread(is_user, self._peer.uid, owner):
            raise PermissionDenied(
                reason=f'user {self._peer.uid} may not open the tap of NIC "{name}": that is for root, for '
                f'members of the group "{GROUP}", and for the owner in its definition, '
                + (f'"{owner}"' if owner else "which names none")
            )
        descriptors = self._service.open_tap(name)
        if len(descriptors) > _DESCRIPTORS_MAX:
            for descriptor in descriptors:
                os.close(descriptor)
            raise Failed(
                reason=f'NIC "{name}" has {len(descriptors)} queues, and no more than {_DESCRIPTORS_MAX} can '
                "be handed out as descriptors: lower `queues`"
            )
        return [FileDescriptor(descriptor, should_close=True) for descriptor in descriptors]

    @varlinkmethod(return_parameter="arguments")
    def Arguments(  # noqa: N802
        self, *, names: list[str], descriptors: dict[str, list[int]] | None, vhost: bool = True
    ) -> list[str]:
        """The QEMU arguments for NICs.

        descriptors: by NIC, the numbers that its tap's open queues (OpenTap) have in QEMU's process; without
        them QEMU opens the tap by its name. vhost: false for a QEMU that may not open /dev/vhost-net.
        """
        return self._service.arguments(names, descriptors, vhost=vhost)

    @varlinkmethod(return_parameter="nic")
    async def Wait(self, *, name: str, state: State, timeout: float | None) -> NicView:  # noqa: N802, ASYNC109
        """Wait until a NIC is in a state, at most for `timeout` seconds. Ends when the client goes."""
        if timeout is not None and not 0 <= timeout <= _LONGEST_WAIT:
            raise InvalidParameter(parameter="timeout")
        waiting = asyncio.ensure_future(self._service.wait(name, state, timeout))
        either: list[asyncio.Future[Any]] = [waiting, self._over]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            raise Failed(reason=OVER)
        try:
            return waiting.result()
        except TimeoutError:
            nic = self._service.nic(name)
            text = f'NIC "{name}" is {nic.state}, not {state}, after {timeout:g} s: {nic.reason}'
            raise TimedOut(reason=text) from None

    @varlinkmethod
    async def AttachDomain(self, *, name: str, domain: str) -> None:  # noqa: N802
        """Give a libvirt domain, running or not, an interface on the NIC's tap."""
        await self._changing.attach_domain(name, domain)

    @varlinkmethod(return_parameter="adoption")
    async def Adopt(self, *, domain: str, dry_run: bool, live: bool) -> AdoptionView:  # noqa: N802
        """Turn a libvirt domain's direct interfaces into evertap's, at its next start or at once (live)."""
        return await (self._service if dry_run else self._changing).adopt(domain, dry_run, live)

    @varlinkmethod(return_parameter="adoption")
    async def Release(self, *, domain: str, dry_run: bool, live: bool) -> AdoptionView:  # noqa: N802
        """Give a libvirt domain its direct interfaces back exactly as they were."""
        return await (self._service if dry_run else self._changing).release(domain, dry_run, live)

    @varlinkmethod(return_parameter="domains")
    def Domains(self) -> list[str]:  # noqa: N802
        """The names of libvirt's domains."""
        return self._service.domains()

    @varlinkmethod
    async def PrepareDomain(self, *, xml: str) -> None:  # noqa: N802
        """Make sure of the taps of a libvirt domain that is about to start."""
        await self._changing.prepare_domain(xml)

    @varlinkmethod(return_parameter="events")
    def History(self, *, name: str | None) -> list[EventView]:  # noqa: N802
        """What happened to a NIC, or to all, since the daemon started, oldest first."""
        return self._service.history(name)

    @varlinkmethod(return_parameter="page")
    async def NicHistory(self, *, name: str, before: int | None, limit: int) -> HistoryPage:  # noqa: N802
        """What happened to a NIC, also before the daemon started, and to a NIC that is no more.

        The last `limit` events, oldest first, at most 500; `before`: the last before a page's `earlier`.
        """
        if not 1 <= limit <= HISTORY_PAGE:
            raise InvalidParameter(parameter="limit")
        if before is not None and not 0 <= before < 2**63:
            raise InvalidParameter(parameter="before")
        return await self._service.nic_history(name, before, limit)

    @varlinkmethod(return_parameter="event", delay_generator=False)
    async def Follow(self, *, name: str | None) -> AsyncIterator[EventView]:  # noqa: N802
        """What happens to a NIC, or to any, from now on. Close the connection to end it.

        A client that reads too slowly misses the oldest events; an event `lost` says how many.
        """
        if not self._followers.take(self._peer.uid, self._trusted):
            raise Failed(reason="too many clients follow the events already")
        try:
            async for event in buffered(self._service.follow(name), self._over):
                yield event
        finally:
            self._followers.leave(self._peer.uid, self._trusted)
        raise Failed(reason=OVER)
