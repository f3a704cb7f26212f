"""An HTTP proxy in front of the registry or Chroma, over real TCP. A test chooses when and how the proxy fails."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from attrs import define, field

MODES = ("refused", "silent", "503", "slow")
"""Ways in which a registry fails.

"refused": nothing listens at the port. "silent": connections are accepted, and no request is answered. "503": every
request gets that status at once. "slow": the response comes one byte at a time. The method ``fail`` also takes
"garbage" (a response with status 200 that is not JSON) and "up" (requests are forwarded).
"""


@define
class RegistryProxy:
    """A running proxy that forwards each request to ``target`` unless ``mode`` is a way to fail.

    ``requests`` contains the first line of each request. ``lose`` and ``refuse`` each contain a text, and apply once,
    to the next request with this text in its first line: ``lose`` drops the response after ``target`` has processed the
    request, and ``refuse`` drops the request before it is sent. ``rebuilt`` replaces schema ids in requests to
    ``target``, as if the registry had been rebuilt and the ids had other meanings.
    """

    target: str
    mode: str = "up"
    lose: str | None = None
    refuse: str | None = None
    rebuilt: dict[int, int] = field(factory=dict)
    requests: list[str] = field(factory=list)
    port: int = 0
    _listener: socket.socket | None = None
    _open: list[socket.socket] = field(factory=list)

    @property
    def url(self) -> str:
        """Return the address at which clients reach the proxy."""
        return f"http://127.0.0.1:{self.port}{urlsplit(self.target).path}"

    def fail(self, mode: str) -> None:
        """Set ``mode``, and close all open connections; "up" forwards requests again."""
        self.mode = mode
        if mode == "refused":
            self._close()
        elif self._listener is None:
            self.listen()
        for connection in self._open:
            _shut(connection)
        self._open.clear()

    def listen(self) -> None:
        """Accept connections, always on the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _close(self) -> None:
        if self._listener is not None:
            _shut(self._listener)
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while data := _request(connection):
                self.requests.append(data.partition(b"\r\n")[0].decode())
                match self.mode:
                    case "silent":
                        continue
                    case "503":
                        connection.sendall(b"HTTP/1.1 503 No\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndown")
                        return
                    case "garbage":
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>")
                        return
                    case "slow":
                        for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Filler: 1\r\n" * 1000:
                            connection.sendall(bytes([byte]))
                            time.sleep(0.2)
                    case _:
                        if self.refuse is not None and self.refuse in self.requests[-1]:
                            self.refuse = None
                            return
                        answer = self._answer(data)
                        if self.lose is not None and self.lose in self.requests[-1]:
                            self.lose = None
                            return
                        connection.sendall(answer)
                        return

    def _answer(self, request: bytes) -> bytes:
        for known, other in self.rebuilt.items():
            request = request.replace(b"/schemas/ids/%d " % known, b"/schemas/ids/%d " % other)
        parts = urlsplit(self.target)
        with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=10) as server:
            server.sendall(request.replace(b"\r\nConnection: keep-alive", b"\r\nConnection: close", 1))
            return b"".join(iter(lambda: server.recv(65536), b""))


def _request(connection: socket.socket) -> bytes:
    data = b""
    while piece := connection.recv(65536):
        data += piece
        head, end, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if end and len(body) >= (int(length[1]) if length else 0):
            return data
    return b""


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@contextmanager
def proxy(target: str) -> Iterator[RegistryProxy]:
    """Run a proxy in front of ``target`` while the context lasts."""
    made = RegistryProxy(target=target)
    made.listen()
    try:
        yield made
    finally:
        made.fail("refused")
