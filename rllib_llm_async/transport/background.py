"""Work beside the caller, of which there is one piece at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable


class _CancelledError(BaseException):
    pass


class Background:
    """A thread for as long as there is something to do; its errors reach the caller.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._cancelled = threading.Event()
        self._error: BaseException | None = None

    def start(self, work: Callable[[Callable[[], None]], None]) -> None:
        """Begins it, after the `end` of what was begun before.

        Args:
            work: Gets a function that it has to call now and then, and whose exception
                ends it.
        """
        self._cancelled.clear()
        self._thread = threading.Thread(
            target=self._run, args=(work,), name=self._name, daemon=True
        )
        self._thread.start()

    def _run(self, work: Callable[[Callable[[], None]], None]) -> None:
        try:
            work(self._check)
        except _CancelledError:
            pass
        except BaseException as error:
            self._error = error

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise _CancelledError

    def cancel(self) -> None:
        """Has it end early; `end` waits for that."""
        self._cancelled.set()

    def end(self) -> None:
        """Waits for its end.

        Raises:
            BaseException: Whatever it raised, once.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.raise_error()

    def raise_error(self) -> None:
        """Raises what it raised, once; does not wait."""
        error, self._error = self._error, None
        if error is not None:
            raise error
