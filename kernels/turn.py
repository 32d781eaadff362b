"""One call at a time on a plan."""

from __future__ import annotations

import os
import threading
from types import TracebackType

__all__ = ["Turn"]


class Turn:
    """A context: calls from several threads wait for each other; a signal handler's is an error, not a deadlock.

    Raises
    ------
    RuntimeError
        This thread is already inside.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._process = threading.Lock(), set[int](), os.getpid()

    def __enter__(self) -> None:
        if self._process != os.getpid():  # a forked child: whoever held the lock is not here
            self._lock, self._inside, self._process = threading.Lock(), set(), os.getpid()
        me = threading.get_ident()
        if me in self._inside:
            raise RuntimeError(
                "this plan is in use by the call that was interrupted: use another plan in signal handlers"
            )
        self._inside.add(me)
        try:
            self._lock.acquire()
        except BaseException:  # a handler that raises while this thread waits
            self._inside.discard(me)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
        self._inside.discard(threading.get_ident())
