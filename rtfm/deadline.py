"""A time limit for a whole request.

httpx limits the time of each read but not of all reads together, and does not limit the look-up of a host name. A
response that arrives slowly, or an unreachable name server, would therefore block the caller for much longer than the
timeout. ``run_within`` prevents that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Answer = TypeVar("Answer")


def run_within(bound_s: float, request: Callable[[], Answer]) -> Answer:
    """Call ``request`` in a daemon thread, and return what it returns or raise what it raises.

    Raises TimeoutError if ``request`` takes longer than ``bound_s`` seconds. The daemon thread then continues, and the
    result of ``request`` is discarded.
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
        raise TimeoutError(f"no response within {bound_s:g} s") from None
