"""The loop: kernel events are folded, the NICs that they concern planned, and the plans carried out."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Iterable
from itertools import dropwhile, takewhile
from typing import Final

from evertap.engine.announcer import Announcer
from evertap.engine.journal import Journal, timestamp
from evertap.engine.ports import Done, Kernel, LostEventsError, Vmms
from evertap.engine.second_look import SecondLook
from evertap.model.actions import SLOW, Action, Announce, Plug, SetGuestLink, SetMulticast, Unplug
from evertap.model.choice import Wanted
from evertap.model.errors import ActionError, EvertapError
from evertap.model.interest import Interest
from evertap.model.links import Link
from evertap.model.nic import Nic
from evertap.model.observed import Change, Observed
from evertap.model.plan import Plan, State, plan
from evertap.model.plan_macvtap import qmp_of
from evertap.model.table import STACKED_ON_UPLINK
from evertap.model.vmm import RxFilter, Vmm, has_device, qemu_id

_log = logging.getLogger(__name__)

_BATCH: Final = 50
"""NICs that share one request; the kernel holds its lock, and the loop waits, for some 15 ms of them."""

_FIRST_RETRY: Final = 0.1
_LAST_RETRY: Final = 30.0

_REREAD: Final = 0.5
"""Seconds until a failed reading of the interfaces is tried again."""

_BOUNCE: Final = 0.25
"""Seconds down in a bounce: some guests do not notice a loss of under 0.1 s."""


class Record:
    """One NIC in the loop's hands."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.plan = Plan("waiting", None, "not looked at yet", [], [])
        self.state: State | None = None  # as last journalled
        self.uplink: str | None = None
        self.uplink_index = 0
        self.reason = "starting"
        self.since = timestamp()
        self.outages = 0
        self.busy = False  # a slow step is under way
        self.done: list[Action] = []  # what was carried out last
        self.error: ActionError | None = None
        self.retries = 0
        self.retry_at = 0.0
        self.touched_at: float | None = None  # when the notification came that is being answered
        self.done_at = 0.0
        self.timer: asyncio.TimerHandle | None = None


class Reconciler:
    """Keeps every wanted NIC as it is wanted. All methods belong to the event loop's thread."""

    def __init__(self, kernel: Kernel, vmms: Vmms, journal: Journal) -> None:
        self.seen = Observed()
        self.nics: dict[str, Record] = {}
        self.interest = Interest()
        self.resyncs = 0
        self.notifications = 0
        """Events of the kernel that were read."""
        self.failures = 0
        """Actions that were refused, by the kernel or by QEMU."""
        self.settled: list[Callable[[str], None]] = []
        """Called with the NIC's name whenever one came to rest in a state."""
        self.host_changed: list[Callable[[], None]] = []
        """Called when any of the host's interfaces has changed."""
        self._kernel = kernel
        self._vmms = vmms
        self._by_qmp: dict[str, set[str]] = {}
        self._follows = False
        vmms.changed = self._on_vmm
        vmms.filtered = self._on_filter
        self._journal = journal
        self._announcer = Announcer(kernel)
        self._second_look = SecondLook(self._look_again)
        self._dirty: dict[str, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stepping = False
        self._loop = asyncio.get_running_loop()

    @property
    def interrupted(self) -> int:
        """How many readings of the interfaces were interrupted by changes, and repeated."""
        return self._kernel.interrupted

    def start(self) -> None:
        """Read the whole host (EvertapError), adopt what is there, and listen from then on."""
        try:
            self.resync()
        except (OSError, EvertapError) as error:
            self._dirty.clear()  # nothing may be done to a host that is not known
            raise EvertapError(f"the host's interfaces cannot be read: {error}") from error
        self._loop.add_reader(self._kernel.fileno(), self._on_events)

    async def stop(self) -> None:
        """Stop looking; leave everything as it is, with traffic flowing."""
        self._loop.remove_reader(self._kernel.fileno())
        self._announcer.stop()
        self._second_look.stop()
        for record in self.nics.values():
            if record.timer:
                record.timer.cancel()
        self._dirty.clear()
        for task in self._tasks:
            task.cancel()  # what the kernel or QEMU has begun is finished nevertheless
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def want(self, wanted: Wanted) -> None:
        """Have a NIC from now on as described, whatever it was before."""
        name = wanted.nic.name
        record = self.nics.get(name)
        if record is None:
            self.nics[name] = Record(wanted)
        else:
            self._by_qmp.get(record.wanted.qmp, set()).discard(name)
            record.wanted = wanted
        self._by_qmp.setdefault(wanted.qmp, set()).add(name)
        self._follow_soon()
        self.interest.put(wanted.nic)
        self._touch(name, self._loop.time())

    async def rest(self, names: Iterable[str]) -> None:
        """Wait until these NICs have come to rest: a command's answer tells what came of it."""
        pending = {name for name in names if name in self._dirty or self._is_busy(name)}
        if not pending:
            return
        rested = asyncio.Event()

        def check(name: str) -> None:
            pending.discard(name)
            if not pending:
                rested.set()

        self.settled.append(check)
        try:
            await rested.wait()
        finally:
            self.settled.remove(check)

    def _is_busy(self, name: str) -> bool:
        record = self.nics.get(name)
        return record is not None and record.busy

    def resync(self) -> None:
        """Read everything anew: at the start, and when notifications were lost."""
        self._take_reading(self._kernel.read_links())

    def _resync_or_retry(self) -> None:
        try:
            self.resync()
        except Exception as error:
            _log.warning("the interfaces could not be read, again in %g s: %s", _REREAD, error)
            self._loop.call_later(_REREAD, self._resync_or_retry)

    def _take_reading(self, links: list[Link]) -> None:
        now = self._loop.time()
        changes = self.seen.fold_all(links, now)
        for link in links:
            if link.owner and link.kind not in STACKED_ON_UPLINK and link.owner not in self.seen.taps:
                splicing = self._kernel.read_splicing(link)
                if splicing is not None:
                    self.seen.taps[link.owner] = splicing
        for name in self.seen.links.owners() - self.nics.keys():
            qmp = qmp_of(self.seen.links.owned(name))
            self.want(Wanted(Nic(name=name, mac="", uplinks=()), removed=True, qmp=qmp))
        self._mark(changes, now)
        self._dirty |= dict.fromkeys(self.nics)
        self._wake()

    def _on_events(self) -> None:
        self._stepping = True
        self._read()
        self._step()

    def _read(self) -> None:
        """Fold all events that are there."""
        now = self._loop.time()
        try:
            events = self._kernel.events()
        except LostEventsError:
            self.resyncs += 1
            _log.warning("the kernel dropped notifications; reading everything anew")
            self._resync_or_retry()
            return
        self.notifications += len(events)
        self._mark((change for event in events if (change := self.seen.fold(event, now))), now)

    def _look_again(self, indexes: set[int]) -> set[int]:
        """Read those of the interfaces that are down; gives them."""
        self._read()  # older than what is read now
        down = {index for index in indexes if (link := self.seen.links.get(index)) and not link.up}
        try:
            links = [link for index in down if (link := self._kernel.read_link(index))]
        except (OSError, EvertapError) as error:
            _log.warning("an interface could not be read again: %s", error)
            return down
        now = self._loop.time()
        self._mark((change for link in links if (change := self.seen.fold(link, now))), now)
        return down

    def _mark(self, changes: Iterable[Change], now: float) -> None:
        any_host = False
        for change in changes:
            link = change.new or change.old
            host = link is not None and not link.owner
            any_host = any_host or host
            self._second_look.note(change)
            for name in self.interest.in_change(change, self.seen):
                if host:
                    self._touch(name, now)
                else:  # our own doing: no reason to retry early what failed
                    self._dirty.setdefault(name)
        if any_host:
            for callback in self.host_changed:
                callback()
        self._wake()

    def _follow_soon(self) -> None:
        """Tell the adapter once which QEMUs matter, however many NICs are being changed."""
        if not self._follows:
            self._follows = True
            self._loop.call_soon(self._follow)

    def _follow(self) -> None:
        self._follows = False
        self._by_qmp = {path: names for path, names in self._by_qmp.items() if names}
        paths = self._by_qmp.keys() - {""}
        for path in self.seen.vmms.keys() - paths:
            del self.seen.vmms[path]
        self._vmms.follow(paths)

    def _on_vmm(self, path: str, vmm: Vmm) -> None:
        if path not in self._by_qmp:
            return
        before = self.seen.vmms.get(path, Vmm())
        self.seen.vmms[path] = vmm
        for name in self._by_qmp[path]:
            if vmm.gone:
                for known in (self.seen.guest_links, self.seen.told, self.seen.rx_filters):
                    known.pop(name, None)
            elif vmm.running:
                self.seen.told.setdefault(name, self.nics[name].uplink_index)
            if vmm.running != before.running:
                self._touch(name, self._loop.time())
            else:  # our own doing, perhaps: no reason to retry early what failed
                self._dirty.setdefault(name)
        self._wake()

    def _on_filter(self, path: str, device: str, rx: RxFilter) -> None:
        for name in self._by_qmp.get(path, ()):
            if qemu_id(name) == device:
                self.seen.rx_filters[name] = rx
                self._touch(name, self._loop.time())

    def _touch(self, name: str, now: float) -> None:
        """Something outside changed: plan the NIC, and do not wait for a retry's time."""
        record = self.nics.get(name)
        if record is None:
            return
        record.retry_at = 0.0
        if record.touched_at is None:
            record.touched_at = now
        self._dirty.setdefault(name)
        self._wake()

    def _wake(self) -> None:
        if self._dirty and not self._stepping:
            self._stepping = True
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        """Plan a batch of NICs, carry the plans out together, and fold what came of it."""
        self._stepping = False
        now = self._loop.time()
        work: list[tuple[Record, list[Action]]] = []
        for name in list(self._dirty):
            if len(work) >= _BATCH:
                break
            del self._dirty[name]
            record = self.nics.get(name)
            if record is None or record.busy:
                continue
            try:
                record.plan = plan(record.wanted, self.seen, now)
            except Exception as error:  # a defect of ours: one NIC's trouble must stay its own
                _log.exception("%s: planning failed", name)
                reason = f"a defect in evertap: {error!r}; please report it"
                record.plan = Plan("failed", None, reason, [], [], now + _LAST_RETRY)
            if record.plan.state != "connected":
                self.seen.lost.add(name)
            actions = record.plan.actions
            if not actions or record.retry_at > now:
                self._settle(record)
            elif actions == record.done:
                self._failed(record, ActionError(f"{actions[0]}: the kernel agreed but nothing changed"), now)
            else:
                if _only_links(actions):
                    # What the NIC is does not hang on how long it takes to tell its guest.
                    self._tell(record)
                work.append((record, actions))
        if work:
            self._perform(work)
            self._read()
        self._wake()

    def _perform(self, work: list[tuple[Record, list[Action]]]) -> None:
        quick = [list(takewhile(lambda action: not isinstance(action, SLOW), actions)) for _, actions in work]
        try:
            outcomes = self._kernel.perform(quick)
        except Exception as error:  # no telling how far it came: the reread will
            _log.exception("carrying out a batch failed")
            outcomes = [Done(ActionError(f"the kernel could not be asked: {error}"), None)] * len(work)
            self._loop.call_soon(self._resync_or_retry)
        now = self._loop.time()
        for (record, actions), done in zip(work, outcomes, strict=True):
            self._note(record, actions, done, now)

    def _note(self, record: Record, actions: list[Action], done: Done, now: float) -> None:
        name = record.wanted.nic.name
        if done.splicing:
            self.seen.taps[name] = done.splicing
            self._announcer.cancel(name)
            record.done_at = now
        if done.error:
            self._failed(record, done.error, now)
            return
        record.done = actions
        record.error = None
        rest = list(dropwhile(lambda action: not isinstance(action, SLOW), actions))
        for action in actions[: len(actions) - len(rest)]:
            if isinstance(action, Announce):
                self._repeat_announcement(record, action)
            elif isinstance(action, SetMulticast):
                had = self.seen.multicast.get(action.index, frozenset())
                self.seen.multicast[action.index] = (had | action.add) - action.remove
        slow = list(takewhile(_is_slow_and_ready, rest))
        # The guest's link comes by a plan of its own, when it is known what the NIC is.
        if slow and (not _only_links(slow) or slow == actions):
            self._start_slow(record, slow)
        self._dirty.setdefault(name)

    def _start_slow(self, record: Record, actions: list[Action]) -> None:
        record.busy = True
        self._spawn(self._perform_slow(record, actions))

    async def _perform_slow(self, record: Record, actions: list[Action]) -> None:
        """Other NICs go on meanwhile; what comes after these steps is planned anew."""
        name = record.wanted.nic.name
        try:
            for action in actions:
                await self._perform_one(record, action)
        except ActionError as error:
            self._failed(record, error, self._loop.time())
        except Exception as error:
            _log.exception("%s: carrying out %s failed", name, actions[0])
            self._failed(record, ActionError(f"{actions[0]}: {error}"), self._loop.time())
        record.busy = False
        self._read()
        self._dirty.setdefault(name)
        self._wake()

    async def _perform_one(self, record: Record, action: Action) -> None:
        match action:
            case Plug(index=int(index), qmp=qmp, nic=name):
                descriptor = self._kernel.open_macvtap(index)
                try:
                    await self._vmms.plug(qmp, name, index, descriptor)
                finally:
                    os.close(descriptor)
                record.done_at = self._loop.time()
            case Unplug(index=index, qmp=qmp, nic=name):
                await self._vmms.unplug(qmp, name, index)
            case SetGuestLink(qmp=qmp, nic=name, up=up):
                if action.bounce:
                    await self._vmms.set_link(qmp, name, False)
                    await asyncio.sleep(_BOUNCE)
                await self._vmms.set_link(qmp, name, up)
                self.seen.guest_links[name] = up
                if action.bounce:
                    self.seen.told[name] = action.lower
            case Announce():
                self._kernel.announce(action)
                self._repeat_announcement(record, action)
            case _:
                done = await self._kernel.perform_slow([action])
                if done.error:
                    raise done.error
                self._read()
                if done.splicing and self.seen.links.named(action.nic):  # else it is gone again
                    self.seen.taps[action.nic] = done.splicing

    def _repeat_announcement(self, record: Record, action: Announce) -> None:
        """Ours tells the switches; through QEMU, a guest that can will also tell its neighbours (virtio)."""
        self.seen.lost.discard(action.nic)
        self._announcer.announce(action)
        qmp = record.wanted.qmp
        if has_device(action.nic, self.seen.vmms.get(qmp, Vmm())):
            self._spawn(self._announce_by_guest(qmp, action.nic))

    async def _announce_by_guest(self, qmp: str, nic: str) -> None:
        try:
            await self._vmms.announce(qmp, nic)
        except ActionError as error:
            _log.info("%s: %s", nic, error)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _failed(self, record: Record, error: ActionError, now: float) -> None:
        self.failures += 1
        record.error = error
        record.done = []
        record.retry_at = now + min(_FIRST_RETRY * 2**record.retries, _LAST_RETRY)
        record.retries += 1
        # Planned anew before it counts: what happened meanwhile may be the failure's cause and its end.
        self._dirty.setdefault(record.wanted.nic.name)

    def _set_timer(self, record: Record, at: float) -> None:
        if record.timer:
            record.timer.cancel()
        name = record.wanted.nic.name

        def due() -> None:
            self._touch(name, self._loop.time())
            self._step()

        record.timer = self._loop.call_at(at, due)

    def _settle(self, record: Record) -> None:
        """The NIC has come to rest: note what it is now, and when to look again."""
        name = record.wanted.nic.name
        if record.wanted.removed and not self.seen.links.owned(name):
            self._forget(name)
            return
        if not record.plan.actions:
            record.done = []
            record.error = None
            record.retries = 0
            if record.timer:
                record.timer.cancel()
                record.timer = None
        due = record.retry_at if record.error else record.plan.again_at
        if due < float("inf"):
            self._set_timer(record, due)
        self._tell(record)

    def _tell(self, record: Record) -> None:
        """Have it known what the NIC is now."""
        self._journal_change(record)
        record.touched_at = None
        for callback in list(self.settled):
            callback(record.wanted.nic.name)

    def _journal_change(self, record: Record) -> None:
        state, reason = record.plan.state, record.plan.reason
        uplink = record.plan.uplink.name if record.plan.uplink else None
        if record.error and _only_links(record.plan.actions):
            reason = "; ".join(filter(None, (reason, str(record.error))))
        elif record.error:
            reason = str(record.error)
            state = state if state == "connected" else "failed"
        name = record.wanted.nic.name
        before, before_uplink, before_index = record.state, record.uplink, record.uplink_index
        record.state, record.uplink, record.reason = state, uplink, reason
        record.uplink_index = record.plan.uplink.index if record.plan.uplink else 0
        if (state, record.uplink_index) == (before, before_index):
            if uplink != before_uplink:
                self._journal.record(name, "renamed", uplink, f"the uplink was called {before_uplink}")
            return
        record.since = timestamp()
        event: str = state
        latency: float | None = None
        if state == "connected":
            if record.touched_at is not None:
                # With nothing left to do, it is connected when this is known.
                done_at = record.done_at if record.done_at >= record.touched_at else self._loop.time()
                latency = done_at - record.touched_at
            event = self._how_connected(record, before, before_uplink)
        elif before == "connected" and state != "disconnected":
            record.outages += 1
        _log.info(
            "%s: %s%s%s", name, event, f" ({uplink})" if uplink else "", f": {reason}" if reason else ""
        )
        self._journal.record(name, event, uplink, reason, latency)

    def _how_connected(self, record: Record, before: State | None, before_uplink: str | None) -> str:
        if before != "connected":
            return "connected"
        order = [candidate.name for candidate in record.plan.found]
        if before_uplink not in order:
            return "retargeted"
        assert record.uplink is not None
        return "failback" if order.index(record.uplink) < order.index(before_uplink) else "failover"

    def _forget(self, name: str) -> None:
        record = self.nics.pop(name)
        if record.timer:
            record.timer.cancel()
        self.interest.drop(name)
        self._by_qmp.get(record.wanted.qmp, set()).discard(name)
        self._follow_soon()
        for known in (self.seen.guest_links, self.seen.told, self.seen.rx_filters):
            known.pop(name, None)
        self.seen.lost.discard(name)
        for callback in list(self.settled):
            callback(name)


def _only_links(actions: list[Action]) -> bool:
    """Whether all that is left to do is to tell the guest of its link."""
    return bool(actions) and all(isinstance(action, SetGuestLink) for action in actions)


def _is_slow_and_ready(action: Action) -> bool:
    """A macvtap that is only just being made has no index yet: it is plugged by the next plan."""
    return isinstance(action, (*SLOW, Announce)) and not (isinstance(action, Plug) and action.index is None)
