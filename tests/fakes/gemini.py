"""A fake of Gemini's REST API: a real HTTP server that uses the same format and can be told to fail.

It serves ``POST /v1beta/models/<model>:generateContent`` for one key and one model, and ``POST /v1/chat/completions``
in OpenAI's format. By default, it keeps every request, and its answer is the text of the first source in the prompt.
Each fault in ``faults`` replaces one response, in order. When no fault is left, ``behaviour`` decides.

``python -m tests.fakes.gemini --port 8099 --delay-s 0.2 --fail-share 0.5 --status 503`` runs it as a separate process.
Its first line on standard output is ``{"address": …}``. ``GET /control`` returns its behaviour and how many requests it
got. ``POST /control`` with ``{"delay_s": …, "status": …, "fail_share": …, "hang": …, "retry_after": …, "reply": …}``
changes its behaviour.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import attrs
from attrs import define, field, frozen

KEY = "made-up-key"
MODEL = "gemini-flash-latest"
STATUS = {400: "INVALID_ARGUMENT", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED"}

Reply = Callable[[dict[str, Any], str], str]
"""A function that takes the document and the instructions of a prompt, and returns the text that the model writes."""


@frozen(kw_only=True)
class Fault:
    """A response in place of the usual one, after ``delay_s``. Without ``body``, the usual one is only delayed."""

    status: int = 200
    body: str | None = None
    headers: dict[str, str] = field(factory=dict)
    delay_s: float = 0.0


@frozen(kw_only=True)
class Behaviour:
    """How the server responds to requests for which no fault was given.

    Of these requests, the share ``fail_share`` (0 to 1) gets ``status`` or, with ``hang``, no response for a minute.
    """

    delay_s: float = 0.0
    status: int = 503
    fail_share: float = 0.0
    hang: bool = False
    retry_after: str | None = None
    reply: str = "first_source"

    def fault(self, chance: float) -> Fault:
        """Return the fault for a request; the random number ``chance`` (0 to 1) decides whether the request fails."""
        if chance >= self.fail_share:
            return Fault(delay_s=self.delay_s)
        if self.hang:
            return Fault(delay_s=60.0)
        headers = {"Retry-After": self.retry_after} if self.retry_after else {}
        return Fault(
            status=self.status, body=_error(self.status, "told to fail"), headers=headers, delay_s=self.delay_s
        )


def throttled(retry_after: str | None = "7") -> Fault:
    """Return the response to a request beyond the quota: status 429."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return Fault(status=429, body=_error(429, "Resource has been exhausted"), headers=headers)


def failing(status: int = 500) -> Fault:
    """Return a response with an error ``status``."""
    return Fault(status=status, body=_error(status, "An internal error has occurred"))


def slow(delay_s: float) -> Fault:
    """Return the usual response, delayed by ``delay_s``."""
    return Fault(delay_s=delay_s)


def not_json() -> Fault:
    """Return a response that contains the HTML page of a proxy, with status 200."""
    return Fault(body="<html>sign in</html>")


def no_candidates() -> Fault:
    """Return a response without a candidate."""
    return Fault(body=json.dumps({"candidates": [], "usageMetadata": _USAGE}))


def blocked_prompt() -> Fault:
    """Return the response to a prompt that the safety filter blocked."""
    return Fault(body=json.dumps({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": _USAGE}))


def finished(reason: str, text: str = "") -> Fault:
    """Return a response whose candidate has the finish reason ``reason``: SAFETY, RECITATION or MAX_TOKENS."""
    return Fault(body=json.dumps(_response(text, reason)))


def first_source(document: dict[str, Any], instructions: str = "") -> str:
    """Answer with the text of the first source and cite the source. If asked to, rewrite the question instead."""
    if "sources" not in document:
        return standalone(document)
    if not document["sources"]:
        return written("", [], sufficient=False)
    source = document["sources"][0]
    said = " ".join(message["text"] for message in source["messages"])
    return written(f"{said} [{source['number']}]", [source["number"]])


def insufficient(document: dict[str, Any], instructions: str = "") -> str:
    """Reply that the sources do not answer the question."""
    return standalone(document) if "sources" not in document else written("", [], sufficient=False)


def standalone(document: dict[str, Any]) -> str:
    """Rewrite a question by appending the asker's previous message."""
    before = [message["text"] for message in document["context"] if message["speaker"] == "asker"]
    return json.dumps({"question": " ".join([document["question"], *before[-1:]])}, ensure_ascii=False)


def written(answer: str, cited: list[int], *, sufficient: bool = True, disagree: bool = False) -> str:
    """Return an answer in the format that the prompt asks for."""
    reply = {"answer": answer, "cited": cited, "sufficient": sufficient, "sources_disagree": disagree}
    return json.dumps(reply, ensure_ascii=False)


def replies() -> dict[str, Reply]:
    """Return the functions that can be chosen by name for ``reply``."""
    from tests.fakes.obedient import obedient

    return {"first_source": first_source, "insufficient": insufficient, "obedient": obedient}


@define
class FakeGemini:
    """The server, which runs while it is entered as a context manager."""

    reply: Reply = first_source
    faults: list[Fault] = field(factory=list)
    behaviour: Behaviour = Behaviour()
    requests: list[dict[str, Any]] = field(factory=list)
    keys: list[str | None] = field(factory=list)
    port: int = 0
    keep_requests: bool = True
    counts: Counter[str] = field(factory=Counter)
    _server: ThreadingHTTPServer | None = None
    _released: threading.Event = field(factory=threading.Event)
    _random: random.Random = field(factory=lambda: random.Random(1))
    _lock: threading.Lock = field(factory=threading.Lock)

    @property
    def address(self) -> str:
        """The server's address, for GEMINI_API_ENDPOINT."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def documents(self) -> list[dict[str, Any]]:
        """The document of each prompt that the server got."""
        return [_document(request) for request in self.requests]

    def answer(self, path: str, key: str | None, request: dict[str, Any]) -> tuple[int, dict[str, str], str]:
        """Return status, headers and body of the response to one request."""
        with self._lock:
            self.counts["requests"] += 1
            if self.keep_requests:
                self.requests.append(request)
                self.keys.append(key)
            fault = self.faults.pop(0) if self.faults else self.behaviour.fault(self._random.random())
        if key != KEY:
            return 400, {}, _error(400, "API key not valid. Please pass a valid API key.")
        as_openai = path == "/v1/chat/completions"
        if not as_openai and path != f"/v1beta/models/{MODEL}:generateContent":
            return 404, {}, _error(404, f"{path} is not found for API version v1beta")
        if fault.delay_s:
            self._released.wait(fault.delay_s)
        if fault.body is not None:
            self._count("failed")
            return fault.status, fault.headers, fault.body
        text = self.reply(_document(request), _instructions(request))
        self._count("answered")
        return 200, {}, json.dumps(_completion(text, "stop") if as_openai else _response(text, "STOP"))

    def control(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Change the behaviour. Return the new behaviour and the numbers of requests so far."""
        with self._lock:
            self.behaviour = attrs.evolve(self.behaviour, **changes)
            self.reply = replies()[self.behaviour.reply] if "reply" in changes else self.reply
            return {"behaviour": attrs.asdict(self.behaviour), **self.counts}

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def __enter__(self) -> FakeGemini:
        self._server = _Server(("127.0.0.1", self.port), _handler(self))
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._released.set()
        self._server.shutdown()
        self._server.server_close()


_USAGE = {"promptTokenCount": 120, "candidatesTokenCount": 30, "thoughtsTokenCount": 10, "totalTokenCount": 160}


def _document(request: dict[str, Any]) -> dict[str, Any]:
    text = request["messages"][-1]["content"] if "messages" in request else request["contents"][-1]["parts"][0]["text"]
    document: dict[str, Any] = json.loads(text)
    return document


def _instructions(request: dict[str, Any]) -> str:
    if "messages" in request:
        return str(request["messages"][0]["content"])
    return str(request["systemInstruction"]["parts"][0]["text"])


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


def _completion(text: str, reason: str) -> dict[str, Any]:
    return {
        "object": "chat.completion",
        "model": MODEL,
        "choices": [{"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 120, "completion_tokens": 40, "total_tokens": 160},
    }


def _error(status: int, message: str) -> str:
    return json.dumps({"error": {"code": status, "message": message, "status": STATUS.get(status, "INTERNAL")}})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of connections, because tests kill clients."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _handler(gemini: FakeGemini) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # a buffer, so that each response is sent as one packet
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._send(200, {}, json.dumps(gemini.control({})))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            path = self.path.partition("?")[0]
            if path == "/control":
                self._send(200, {}, json.dumps(gemini.control(body)))
                return
            bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
            self._send(*gemini.answer(path, self.headers.get("x-goog-api-key") or bearer or None, body))

        def _send(self, status: int, headers: dict[str, str], text: str) -> None:
            data = text.encode()
            try:
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                self.wfile.flush()
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client gave up waiting

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
            return

    return Handler


def main() -> None:
    """Serve until the process ends."""
    parser = argparse.ArgumentParser(description="A fake of Gemini's REST API.")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 chooses a free port")
    parser.add_argument("--delay-s", type=float, default=0.0, help="seconds before each response")
    parser.add_argument("--fail-share", type=float, default=0.0, help="share of requests that fail, from 0 to 1")
    parser.add_argument("--status", type=int, default=503, help="HTTP status of the requests that fail")
    parser.add_argument("--retry-after", help="Retry-After header of the requests that fail")
    parser.add_argument("--hang", action="store_true", help="requests that fail get no response for a minute")
    parser.add_argument("--reply", choices=["first_source", "insufficient", "obedient"], default="first_source")
    given = vars(parser.parse_args())
    with FakeGemini(port=given.pop("port"), keep_requests=False) as gemini:
        gemini.control(given)
        print(json.dumps({"address": gemini.address}), flush=True)  # noqa: T201 - for the caller
        threading.Event().wait()


if __name__ == "__main__":
    main()
