"""A bound on the whole of a request, for clients whose own timeouts bound only its parts.

httpx's timeouts bound each read, and none bounds the look-up of a host name. Without this, a trickling response or an
unreachable name server would block the caller far beyond its timeout.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Answer = TypeVar("Answer")


def run_within(bound_s: float, request: Callable[[], Answer]) -> Answer:
    """Return or raise the outcome of ``request``; raise TimeoutError after ``bound_s`` seconds in all.

    ``request`` runs in its own daemon thread. A late outcome is discarded.
    """
    answer: Future[Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(request())
        except BaseException as exc:
            answer.set_exception(exc)

    threading.Thread(target=run, name="request", daemon=True).start()
    try:
        return answer.result(bound_s)
    except TimeoutError:
        if answer.done():
            raise
        raise TimeoutError(f"no answer within {bound_s:g} s") from None
