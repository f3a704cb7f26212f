"""The proxy of tests/network.py: each fault between a client and an echo server."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from attrs import field, frozen

from tests.chaos.kafka_proxy import KafkaProxy, LateRequest, api_of, client_of
from tests.network import CLEAR, RETRANSMISSION_S, Conditions, Proxy
from tests.streams import eventually

SILENT_S = 0.3
"""If no data arrives for this many seconds, a connection counts as silent."""


@frozen
class Echo:
    """A server that sends back what it receives, and keeps it in ``heard``; ``ends`` says how connections ended."""

    listener: socket.socket = field(factory=lambda: socket.create_server(("127.0.0.1", 0)))
    heard: list[bytes] = field(factory=list)
    ends: list[str] = field(factory=list)

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def serve(self) -> None:
        """Accept connections until the listener is closed."""
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65_536):
                    self.heard.append(data)
                    connection.sendall(data)
                self.ends.append("closed")
            except OSError:
                self.ends.append("reset")


@pytest.fixture
def echo() -> Iterator[Echo]:
    """A server that runs until the end of the test."""
    server = Echo()
    threading.Thread(target=server.serve, daemon=True).start()
    yield server
    server.listener.shutdown(socket.SHUT_RDWR)
    server.listener.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    """A proxy in front of the echo server."""
    with Proxy(echo.port) as made:
        yield made


def connected(proxy: Proxy) -> socket.socket:
    """Open a client's connection to the proxy."""
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=20)


def exchange(connection: socket.socket, data: bytes) -> bytes:
    """Send ``data``, and return the echo, or a part of the echo if the connection is closed."""
    connection.sendall(data)
    return receive(connection, len(data))


def receive(connection: socket.socket, count: int) -> bytes:
    """Return ``count`` bytes, or fewer if the connection is closed."""
    data = b""
    while len(data) < count and (piece := connection.recv(count - len(data))):
        data += piece
    return data


def is_silent(connection: socket.socket) -> bool:
    """Return whether nothing arrives, not even the end of the stream."""
    connection.settimeout(SILENT_S)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(20)
    return False


def test_data_and_the_end_of_a_stream_pass(echo: Echo, proxy: Proxy) -> None:
    """A megabyte of data passes in both directions, and the end of one direction leaves the other one open."""
    data = bytes(range(256)) * 4000
    with connected(proxy) as connection:
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        assert receive(connection, len(data)) == data
        sender.join()
        connection.sendall(b"last")
        connection.shutdown(socket.SHUT_WR)
        assert receive(connection, 100) == b"last"
    eventually(lambda: echo.ends == ["closed"])
    eventually(lambda: proxy.clients == [])


@pytest.mark.parametrize("way", ["up", "down"])
def test_latency_delays_each_piece_by_itself(proxy: Proxy, way: str) -> None:
    """Each piece is delayed by itself, so that the delays do not add up, and no piece overtakes another."""
    proxy.set_conditions(**{way: Conditions(latency_s=0.3, jitter_s=0.1)})
    with connected(proxy) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begun_s = time.monotonic()
        for number in range(100):
            connection.sendall(b"%02d" % number)
            time.sleep(0.001)
        assert receive(connection, 200) == b"".join(b"%02d" % number for number in range(100))
        assert 0.3 <= time.monotonic() - begun_s < 30  # the sum of the delays would be 30 s
        proxy.heal()
        assert exchange(connection, b"soon") == b"soon"


def test_lost_pieces_arrive_after_a_retransmission(proxy: Proxy) -> None:
    """A lost piece arrives after a retransmission, because a stream has no gaps."""
    proxy.set_conditions(up=Conditions(loss=1.0))
    with connected(proxy) as connection:
        begun_s = time.monotonic()
        assert exchange(connection, b"lost once") == b"lost once"
        assert time.monotonic() - begun_s >= RETRANSMISSION_S


def test_bandwidth_limits_the_throughput(proxy: Proxy) -> None:
    """With a bandwidth of 100,000 bytes a second, 40,000 bytes take at least 0.4 s."""
    proxy.set_conditions(down=Conditions(bytes_per_s=100_000))
    with connected(proxy) as connection:
        begun_s = time.monotonic()
        assert exchange(connection, bytes(20_000)) == bytes(20_000)
        assert exchange(connection, bytes(20_000)) == bytes(20_000)
        assert exchange(connection, b".") == b"."
        assert time.monotonic() - begun_s >= 0.4


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_held_direction_keeps_data_and_ends_until_it_heals(echo: Echo, proxy: Proxy, way: str) -> None:
    """A held direction delivers nothing until the network heals, and the connection stays open.

    If only the direction to the client is held, the data still reaches the server.
    """
    with connected(proxy) as connection:
        assert exchange(connection, b"before") == b"before"
        proxy.set_conditions(**{way: Conditions(held=True)})
        connection.sendall(b"during")
        assert is_silent(connection)
        assert (b"during" in echo.heard) is (way == "down")
        proxy.heal()
        assert receive(connection, 6) == b"during"


def test_data_of_a_closed_client_is_delivered_after_healing(echo: Echo, proxy: Proxy) -> None:
    """If a client closes while its data is held, the data and then the end reach the server after healing."""
    with connected(proxy) as connection:
        assert exchange(connection, b"before") == b"before"
        proxy.set_conditions(up=Conditions(held=True))
        connection.sendall(b"during")
    time.sleep(SILENT_S)
    assert (echo.heard, echo.ends) == ([b"before"], [])
    proxy.heal()
    eventually(lambda: echo.heard == [b"before", b"during"] and echo.ends)


def test_a_cut_network_is_silent_for_old_and_new_connections(echo: Echo, proxy: Proxy) -> None:
    """While the network is cut, connections from before the cut and new ones are silent.

    Healing restores the old connections. The new connections are reset, and their data does not reach the server.
    """
    with connected(proxy) as old:
        assert exchange(old, b"before") == b"before"
        proxy.cut()
        old.sendall(b"during")
        with connected(proxy) as new:
            new.sendall(b"lost")
            assert is_silent(old)
            assert is_silent(new)
            proxy.heal()
            assert receive(old, 6) == b"during"
            with pytest.raises(ConnectionResetError):
                new.recv(1)
    assert b"lost" not in echo.heard


def test_abandoned_connections_stay_open_and_dead_while_new_ones_work(echo: Echo, proxy: Proxy) -> None:
    """Abandoned connections stay open without data, even after healing, while new ones work.

    A firewall that forgot a connection has the same effect.
    """
    with connected(proxy) as old:
        assert exchange(old, b"before") == b"before"
        proxy.abandon()
        old.sendall(b"never")
        with connected(proxy) as new:
            assert exchange(new, b"works") == b"works"
        proxy.heal()
        assert is_silent(old)
    eventually(lambda: echo.ends == ["closed"], timeout_s=5)
    time.sleep(SILENT_S)
    assert (echo.heard, echo.ends) == ([b"before", b"works"], ["closed"])


def test_a_reset_ends_both_sides_at_once(echo: Echo, proxy: Proxy) -> None:
    """A reset sends RST to both sides, and the next connection works."""
    with connected(proxy) as connection:
        assert exchange(connection, b"before") == b"before"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        eventually(lambda: echo.ends == ["reset"])
    with connected(proxy) as connection:
        assert exchange(connection, b"after") == b"after"


def test_a_refusing_proxy_listens_again_at_the_same_port(proxy: Proxy) -> None:
    """A proxy that refuses resets open connections and does not listen; after healing it listens at the same port."""
    with connected(proxy) as connection:
        assert exchange(connection, b"before") == b"before"
        proxy.refuse()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        with pytest.raises(ConnectionRefusedError):
            connected(proxy)
        proxy.heal()
    with connected(proxy) as connection:
        assert exchange(connection, b"after") == b"after"


def test_a_missing_server_resets_the_clients_connection() -> None:
    """If the server is missing, the client's connection is reset."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    # If the proxy is fast, the connect call itself fails.
    with Proxy(port) as proxy, pytest.raises(ConnectionResetError), connected(proxy) as connection:
        connection.recv(1)


def test_conditions_have_no_fault_by_default() -> None:
    """Conditions without arguments have no fault."""
    assert Conditions() == CLEAR


def request(api: int, number: int, client: str, body: bytes = b"") -> bytes:
    """Build a request in the format of Kafka's clients."""
    name = client.encode()
    payload = struct.pack(">hhih", api, 0, number, len(name)) + name + body
    return struct.pack(">i", len(payload)) + payload


def test_the_kind_and_the_client_of_a_request_are_told_from_its_first_bytes() -> None:
    """Kind and client of a request of Kafka's protocol are read from its first bytes; a client may have no id."""
    assert (api_of(request(28, 7, "rtfm-w1")), client_of(request(28, 7, "rtfm-w1"))) == (28, "rtfm-w1")
    assert client_of(struct.pack(">ihhih", 10, 3, 0, 1, -1)) == ""


def test_one_of_several_clients_is_cut_off(echo: Echo) -> None:
    """A client that is selected by name is cut off in both directions, and other clients are not."""
    with KafkaProxy(echo.port) as proxy, connected(proxy) as one, connected(proxy) as two:
        for number, connection in ((1, one), (2, two)):
            assert exchange(connection, data := request(3, number, f"w{number}")) == data
        assert proxy.clients == ["w1", "w2"]
        proxy.cut(lambda name: name == "w1")
        one.sendall(request(3, 3, "w1"))
        assert exchange(two, data := request(3, 4, "w2")) == data
        assert is_silent(one)
        proxy.heal()
        assert receive(one, len(data)) == request(3, 3, "w1")


def test_a_late_request_arrives_after_later_ones_of_its_client(echo: Echo) -> None:
    """A late request arrives after later requests of its client.

    The client's connection is reset, and the client connects again. In the test, the late request (API 28) arrives just
    before the client's second request of API 26.
    """
    with KafkaProxy(echo.port) as proxy, connected(proxy) as other:
        late = LateRequest(picks=lambda r: api_of(r) == 28, until=lambda r: api_of(r) == 26, overtaken=2)
        proxy.make_late(late)
        with connected(proxy) as old:
            assert exchange(old, first := request(24, 1, "w1")) == first
            # The proxy reads the correlation id of a response from bytes 4 to 8. In an echo, these bytes are the API
            # key and the version of the request. So the request gets a correlation id that consists of the same bytes.
            old.sendall(kept := request(28, 28 << 16, "w1", b"kept"))
            with pytest.raises(ConnectionResetError):
                old.recv(1)
        later = [request(28, 1, "w1", b"again"), request(26, 2, "w1"), request(28, 3, "w1"), request(26, 4, "w1")]
        stranger = request(26, 1, "w2")
        with connected(proxy) as new:
            assert exchange(new, later[0]) == later[0]
            assert exchange(other, stranger) == stranger
            for data in later[1:]:
                assert exchange(new, data) == data
        assert late.delivered.wait(10)
        assert b"".join(echo.heard) == b"".join([first, later[0], stranger, *later[1:3], kept, later[3]])
        assert (late.client, late.answer) == ("w1", kept)


def test_a_late_request_whose_client_stays_away_is_delivered_all_the_same(echo: Echo) -> None:
    """If the client of a late request does not come back, the request is delivered after the longest delay."""
    with KafkaProxy(echo.port) as proxy, connected(proxy) as old:
        late = LateRequest(picks=lambda r: api_of(r) == 28, until=lambda r: api_of(r) == 26, at_most_s=0.1)
        proxy.make_late(late)
        old.sendall(kept := request(28, 28 << 16, "w1"))
        assert late.delivered.wait(10)
        assert echo.heard == [kept]
