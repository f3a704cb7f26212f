"""A bound on the whole of a request, for clients whose own timeouts bound its parts.

A timeout of httpx bounds each read, and none bounds the look-up of a name: an answer that trickles in, or a name server
that is gone, would hold up the caller for long.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Answer = TypeVar("Answer")


def run_within(bound_s: float, request: Callable[[], Answer]) -> Answer:
    """What ``request`` gives or raises; TimeoutError after ``bound_s`` in all.

    What comes too late is dropped, with its thread.
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
