"""Blocking calls in threads, waited for with a time limit; a thread that does not return is left alone."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

import libvirt

from evertap.model.errors import ActionError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_Job = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class RefusedError(ActionError):
    """libvirt answered with an error; `code` is its VIR_ERR number, 0 if it is our own."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(" ".join(text.split()))
        self.code = code


class Threads:
    """As many threads as there are calls at a time; they are kept, asleep, for later calls.

    The threads are daemons: one that hangs does not keep the process from ending. To be used within one loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle: list[_Thread] = []
        self._closed = False

    def start(self, work: Callable[[], _T]) -> asyncio.Future[_T]:
        """Carry out `work` in a thread. The future cannot be cancelled; its error is RefusedError.

        What libvirt gave (connections, domains) must not get out of the thread with the result, unless it is
        let go of in a thread again: the last reference to a connection speaks with libvirtd when it goes.
        """
        future: asyncio.Future[_T] = self._loop.create_future()
        future.add_done_callback(lambda done: done.exception())  # it may be that nobody waits any more
        thread = self._idle.pop() if self._idle else _Thread(self._loop, self._finish)
        thread.jobs.put((work, future))
        return future

    def _finish(
        self, thread: _Thread, future: asyncio.Future[Any], result: Any, error: Exception | None
    ) -> None:
        if self._closed:
            thread.jobs.put(None)
        else:
            self._idle.append(thread)
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def close(self) -> None:
        """End the threads: those that sleep now, the others once they have done their work."""
        self._closed = True
        while self._idle:
            self._idle.pop().jobs.put(None)


class _Thread:
    def __init__(self, loop: asyncio.AbstractEventLoop, finish: Callable[..., None]) -> None:
        self.jobs = SimpleQueue[_Job | None]()
        self._loop = loop
        self._finish = finish
        threading.Thread(target=self._run, name="evertap-libvirt", daemon=True).start()

    def _run(self) -> None:
        while (job := self.jobs.get()) is not None:
            outcome = _carry_out(job[0])
            try:
                self._loop.call_soon_threadsafe(self._finish, self, job[1], *outcome)
            except RuntimeError:  # the loop was closed: nobody is interested any more
                return
            del job, outcome


def _carry_out(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return work(), None
    except libvirt.libvirtError as error:
        # Without the error itself, whose traceback would carry libvirt's objects out of the thread.
        return None, RefusedError(str(error), error.get_error_code() or 0)
    except ActionError as error:
        return None, error.with_traceback(None)
    except Exception:
        _log.exception("an error in evertap, in a call of libvirt")
        return None, RefusedError("an error in evertap; see its log")
