"""The proxy of tests/network.py: each fault, between a client and a server that says again what it hears."""

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
"""How long nothing must come where nothing may."""


@frozen
class Echo:
    """Says again what it hears, and keeps it; ``ends`` tells how connections ended."""

    listener: socket.socket = field(factory=lambda: socket.create_server(("127.0.0.1", 0)))
    heard: list[bytes] = field(factory=list)
    ends: list[str] = field(factory=list)

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def serve(self) -> None:
        """Accept until the listener is closed."""
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
    """A proxy before it."""
    with Proxy(echo.port) as made:
        yield made


def connected(proxy: Proxy) -> socket.socket:
    """A client's connection."""
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=20)


def said(connection: socket.socket, data: bytes) -> bytes:
    """What comes back."""
    connection.sendall(data)
    return heard(connection, len(data))


def heard(connection: socket.socket, count: int) -> bytes:
    """So many bytes, or fewer when the connection is closed."""
    data = b""
    while len(data) < count and (piece := connection.recv(count - len(data))):
        data += piece
    return data


def is_silent(connection: socket.socket) -> bool:
    """Whether nothing comes, not even an end."""
    connection.settimeout(SILENT_S)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(20)
    return False


def test_what_is_sent_passes_and_so_does_the_end(echo: Echo, proxy: Proxy) -> None:
    """In both directions, however much it is; an end of one direction leaves the other open."""
    data = bytes(range(256)) * 4000
    with connected(proxy) as connection:
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        assert heard(connection, len(data)) == data
        sender.join()
        connection.sendall(b"last")
        connection.shutdown(socket.SHUT_WR)
        assert heard(connection, 100) == b"last"
    eventually(lambda: echo.ends == ["closed"])
    eventually(lambda: proxy.clients == [])


@pytest.mark.parametrize("way", ["up", "down"])
def test_latency_delays_each_piece_by_itself(proxy: Proxy, way: str) -> None:
    """Pieces that follow one another are all as late as the first, not later and later; none overtakes another."""
    proxy.set_conditions(**{way: Conditions(latency_s=0.3, jitter_s=0.1)})
    with connected(proxy) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begun_s = time.monotonic()
        for number in range(100):
            connection.sendall(b"%02d" % number)
            time.sleep(0.001)
        assert heard(connection, 200) == b"".join(b"%02d" % number for number in range(100))
        assert 0.3 <= time.monotonic() - begun_s < 30  # one after another it would be 30 s
        proxy.heal()
        assert said(connection, b"soon") == b"soon"


def test_lost_pieces_come_when_they_are_sent_again(proxy: Proxy) -> None:
    """A stream has no holes: loss is a delay."""
    proxy.set_conditions(up=Conditions(loss=1.0))
    with connected(proxy) as connection:
        begun_s = time.monotonic()
        assert said(connection, b"lost once") == b"lost once"
        assert time.monotonic() - begun_s >= RETRANSMISSION_S


def test_a_narrow_way_takes_as_long_as_its_bytes(proxy: Proxy) -> None:
    """40,000 bytes at 100,000 a second."""
    proxy.set_conditions(down=Conditions(bytes_per_s=100_000))
    with connected(proxy) as connection:
        begun_s = time.monotonic()
        assert said(connection, bytes(20_000)) == bytes(20_000)
        assert said(connection, bytes(20_000)) == bytes(20_000)
        assert said(connection, b".") == b"."
        assert time.monotonic() - begun_s >= 0.4


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_way_that_is_held_keeps_bytes_and_ends_until_it_is_healed(echo: Echo, proxy: Proxy, way: str) -> None:
    """Both sockets stay open; with the answers held the request has arrived, with requests held it has not."""
    with connected(proxy) as connection:
        assert said(connection, b"before") == b"before"
        proxy.set_conditions(**{way: Conditions(held=True)})
        connection.sendall(b"during")
        assert is_silent(connection)
        assert (b"during" in echo.heard) is (way == "down")
        proxy.heal()
        assert heard(connection, 6) == b"during"


def test_what_a_client_sent_and_gave_up_is_delivered_once_requests_pass_again(echo: Echo, proxy: Proxy) -> None:
    """The server does not learn of the end before it has the bytes."""
    with connected(proxy) as connection:
        assert said(connection, b"before") == b"before"
        proxy.set_conditions(up=Conditions(held=True))
        connection.sendall(b"during")
    time.sleep(SILENT_S)
    assert (echo.heard, echo.ends) == ([b"before"], [])
    proxy.heal()
    eventually(lambda: echo.heard == [b"before", b"during"] and echo.ends)


def test_a_cut_network_is_silent_for_old_and_new_connections(echo: Echo, proxy: Proxy) -> None:
    """An old one goes on when it is healed; one that was made meanwhile is reset and never reaches the server."""
    with connected(proxy) as old:
        assert said(old, b"before") == b"before"
        proxy.cut()
        old.sendall(b"during")
        with connected(proxy) as new:
            new.sendall(b"lost")
            assert is_silent(old)
            assert is_silent(new)
            proxy.heal()
            assert heard(old, 6) == b"during"
            with pytest.raises(ConnectionResetError):
                new.recv(1)
    assert b"lost" not in echo.heard


def test_abandoned_connections_stay_open_and_dead_while_new_ones_work(echo: Echo, proxy: Proxy) -> None:
    """As behind a firewall that forgot them: neither end is told, whatever it does, also when the network is healed."""
    with connected(proxy) as old:
        assert said(old, b"before") == b"before"
        proxy.abandon()
        old.sendall(b"never")
        with connected(proxy) as new:
            assert said(new, b"works") == b"works"
        proxy.heal()
        assert is_silent(old)
    eventually(lambda: echo.ends == ["closed"], timeout_s=5)
    time.sleep(SILENT_S)
    assert (echo.heard, echo.ends) == ([b"before", b"works"], ["closed"])


def test_a_reset_ends_both_sides_at_once(echo: Echo, proxy: Proxy) -> None:
    """With RST, not in order; the next connection works."""
    with connected(proxy) as connection:
        assert said(connection, b"before") == b"before"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        eventually(lambda: echo.ends == ["reset"])
    with connected(proxy) as connection:
        assert said(connection, b"after") == b"after"


def test_refused_until_it_is_healed_at_the_same_port(proxy: Proxy) -> None:
    """Open connections are reset, new ones get no listener."""
    with connected(proxy) as connection:
        assert said(connection, b"before") == b"before"
        proxy.refuse()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        with pytest.raises(ConnectionRefusedError):
            connected(proxy)
        proxy.heal()
    with connected(proxy) as connection:
        assert said(connection, b"after") == b"after"


def test_a_server_that_is_gone_is_a_connection_that_is_reset() -> None:
    """Whoever connects is told."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    # The proxy may be so quick that connecting is told already.
    with Proxy(port) as proxy, pytest.raises(ConnectionResetError), connected(proxy) as connection:
        connection.recv(1)


def test_conditions_are_clear_unless_said() -> None:
    """So that what is set for one direction leaves the other alone."""
    assert Conditions() == CLEAR


def request(api: int, number: int, client: str, body: bytes = b"") -> bytes:
    """A request as Kafka's clients send it."""
    name = client.encode()
    payload = struct.pack(">hhih", api, 0, number, len(name)) + name + body
    return struct.pack(">i", len(payload)) + payload


def test_the_kind_and_the_client_of_a_request_are_told_from_its_first_bytes() -> None:
    """As the protocol has them; a client may have no id."""
    assert (api_of(request(28, 7, "rtfm-w1")), client_of(request(28, 7, "rtfm-w1"))) == (28, "rtfm-w1")
    assert client_of(struct.pack(">ihhih", 10, 3, 0, 1, -1)) == ""


def test_one_of_several_clients_is_cut_off(echo: Echo) -> None:
    """By its name, in both directions; the others do not notice."""
    with KafkaProxy(echo.port) as proxy, connected(proxy) as one, connected(proxy) as two:
        for number, connection in ((1, one), (2, two)):
            assert said(connection, data := request(3, number, f"w{number}")) == data
        assert proxy.clients == ["w1", "w2"]
        proxy.cut(lambda name: name == "w1")
        one.sendall(request(3, 3, "w1"))
        assert said(two, data := request(3, 4, "w2")) == data
        assert is_silent(one)
        proxy.heal()
        assert heard(one, len(data)) == request(3, 3, "w1")


def test_a_late_request_arrives_after_later_ones_of_its_client(echo: Echo) -> None:
    """Its client is reset and connects again; what it sends then, up to the request that is waited for, is earlier."""
    with KafkaProxy(echo.port) as proxy, connected(proxy) as other:
        late = LateRequest(picks=lambda r: api_of(r) == 28, until=lambda r: api_of(r) == 26, overtaken=2)
        proxy.make_late(late)
        with connected(proxy) as old:
            assert said(old, first := request(24, 1, "w1")) == first
            # A broker's answer has the number where this one says the API key and its version.
            old.sendall(kept := request(28, 28 << 16, "w1", b"kept"))
            with pytest.raises(ConnectionResetError):
                old.recv(1)
        later = [request(28, 1, "w1", b"again"), request(26, 2, "w1"), request(28, 3, "w1"), request(26, 4, "w1")]
        stranger = request(26, 1, "w2")
        with connected(proxy) as new:
            assert said(new, later[0]) == later[0]
            assert said(other, stranger) == stranger
            for data in later[1:]:
                assert said(new, data) == data
        assert late.delivered.wait(10)
        assert b"".join(echo.heard) == b"".join([first, later[0], stranger, *later[1:3], kept, later[3]])
        assert (late.client, late.answer) == ("w1", kept)


def test_a_late_request_whose_client_stays_away_is_delivered_all_the_same(echo: Echo) -> None:
    """After as long as it may take."""
    with KafkaProxy(echo.port) as proxy, connected(proxy) as old:
        late = LateRequest(picks=lambda r: api_of(r) == 28, until=lambda r: api_of(r) == 26, at_most_s=0.1)
        proxy.make_late(late)
        old.sendall(kept := request(28, 28 << 16, "w1"))
        assert late.delivered.wait(10)
        assert echo.heard == [kept]
