"""A stand-in for Gemini's REST API: a real HTTP server with its shape, and its faults on demand.

It answers ``POST /v1beta/models/<model>:generateContent`` for one key and one model, keeps every request, and by
default obeys its sources: the answer is what the first one says. Faults are used up in the order they were given.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from attrs import define, field, frozen

KEY = "made-up-key"
MODEL = "gemini-flash-latest"
STATUS = {400: "INVALID_ARGUMENT", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED"}

Reply = Callable[[dict[str, Any]], str]
"""From the prompt's document to the text that the model writes."""


@frozen(kw_only=True)
class Fault:
    """One answer that is not what was asked for. ``delay_s`` comes before it."""

    status: int = 200
    body: str | None = None
    headers: dict[str, str] = field(factory=dict)
    delay_s: float = 0.0


def throttled(retry_after: str = "7") -> Fault:
    """429, as when the quota is used up."""
    return Fault(status=429, body=_error(429, "Resource has been exhausted"), headers={"Retry-After": retry_after})


def failing(status: int = 500) -> Fault:
    """A failure of the server."""
    return Fault(status=status, body=_error(status, "An internal error has occurred"))


def slow(delay_s: float) -> Fault:
    """The right answer, late."""
    return Fault(delay_s=delay_s)


def not_json() -> Fault:
    """A proxy's page instead of the API's answer."""
    return Fault(body="<html>sign in</html>")


def no_candidates() -> Fault:
    """An answer without a candidate."""
    return Fault(body=json.dumps({"candidates": [], "usageMetadata": _USAGE}))


def blocked_prompt() -> Fault:
    """A question that the safety filter stopped."""
    return Fault(body=json.dumps({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": _USAGE}))


def finished(reason: str, text: str = "") -> Fault:
    """A candidate that ended with ``reason``: SAFETY, RECITATION, MAX_TOKENS."""
    return Fault(body=json.dumps(_response(text, reason)))


def first_source(document: dict[str, Any]) -> str:
    """What the first source says, cited."""
    source = document["sources"][0]
    said = " ".join(message["text"] for message in source["messages"])
    return json.dumps(
        {"answer": f"{said} [{source['number']}]", "cited": [source["number"]], "sufficient": True}, ensure_ascii=False
    )


@define
class FakeGemini:
    """The server. ``with FakeGemini() as gemini: … gemini.address``."""

    reply: Reply = first_source
    faults: list[Fault] = field(factory=list)
    requests: list[dict[str, Any]] = field(factory=list)
    keys: list[str | None] = field(factory=list)
    _server: ThreadingHTTPServer | None = None
    _released: threading.Event = field(factory=threading.Event)

    @property
    def address(self) -> str:
        """The value of GEMINI_API_ENDPOINT."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def documents(self) -> list[dict[str, Any]]:
        """The data of each prompt, as the model got it."""
        return [json.loads(request["contents"][-1]["parts"][0]["text"]) for request in self.requests]

    def answer(self, path: str, key: str | None, request: dict[str, Any]) -> tuple[int, dict[str, str], str]:
        """Status, headers and body for one request."""
        self.requests.append(request)
        self.keys.append(key)
        if key != KEY:
            return 400, {}, _error(400, "API key not valid. Please pass a valid API key.")
        if path != f"/v1beta/models/{MODEL}:generateContent":
            return 404, {}, _error(404, f"{path} is not found for API version v1beta")
        fault = self.faults.pop(0) if self.faults else Fault()
        if fault.delay_s:
            self._released.wait(fault.delay_s)
        if fault.body is not None:
            return fault.status, fault.headers, fault.body
        text = self.reply(json.loads(request["contents"][-1]["parts"][0]["text"]))
        return 200, {}, json.dumps(_response(text, "STOP"))

    def __enter__(self) -> FakeGemini:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._released.set()
        self._server.shutdown()
        self._server.server_close()


_USAGE = {"promptTokenCount": 120, "candidatesTokenCount": 30, "thoughtsTokenCount": 10, "totalTokenCount": 160}


def _response(text: str, reason: str) -> dict[str, Any]:
    return {
        "candidates": [
            {
                "content": {"role": "model", "parts": [{"text": text}] if text else []},
                "finishReason": reason,
                "index": 0,
            }
        ],
        "usageMetadata": _USAGE,
        "modelVersion": MODEL,
        "responseId": "made-up",
    }


def _error(status: int, message: str) -> str:
    return json.dumps({"error": {"code": status, "message": message, "status": STATUS.get(status, "INTERNAL")}})


def _handler(gemini: FakeGemini) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            status, headers, text = gemini.answer(
                path, self.headers.get("x-goog-api-key"), cast("dict[str, Any]", json.loads(body))
            )
            data = text.encode()
            try:
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                return  # the client gave up waiting

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
            return

    return Handler
