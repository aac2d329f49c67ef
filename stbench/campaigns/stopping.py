"""Ctrl-C, heard by every thread that works for the person who pressed it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stop:
    """Asked for once, by any thread; never taken back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._callbacks: list[Callable[[], None]] = []

    @property
    def asked(self) -> bool:
        """Whether to stop."""
        return self._event.is_set()

    def ask(self) -> None:
        """Stops what is running: calls, in this thread, what :meth:`calling` blocks registered."""
        with self._lock:
            self._event.set()
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback()

    def wait(self, seconds: float) -> bool:
        """Sleeps unless asked to stop; returns whether it was."""
        return self._event.wait(seconds)

    @contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        """While the block lasts, ``callback`` is called when somebody asks to stop; at once when somebody
        has. It must be safe to call from another thread."""
        with self._lock:
            self._callbacks.append(callback)
            asked = self._event.is_set()
        try:
            if asked:
                callback()
            yield
        finally:
            with self._lock:
                self._callbacks.remove(callback)
