"""The actions of a run that disturb the network between its workers and a dependency, or that freeze Kafka.

The workers connect to each dependency through a proxy. The load and the observers of the run connect directly.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from attrs import evolve, frozen

from rtfm.local.services import DEFAULT_PORTS, SERVICES, free_ports
from rtfm.local.stack import LocalStack
from rtfm.settings import Settings
from tests.chaos.actions import Action
from tests.chaos.kafka_proxy import Api, KafkaProxy, LateRequest, api_of, proxied_listener
from tests.network import Conditions, Proxy

LATE_PATIENCE_S = 8.0
"""If no late request is delivered within this many seconds, the action "late request" gives up."""

_DELAYED_APIS = (Api.PRODUCE, Api.ADD_OFFSETS_TO_TXN, Api.TXN_OFFSET_COMMIT, Api.END_TXN)


@frozen
class Network:
    """A proxy for each dependency. ``ports`` are the ports at which the dependencies must listen."""

    ports: Mapping[str, int]
    proxies: Mapping[str, Proxy]
    _open: ExitStack

    @classmethod
    def plan(cls) -> Self:
        """Choose free ports for the dependencies and their proxies.

        The proxies listen while the network is entered as a context manager. The dependencies can be started later.
        """
        ports = free_ports([*DEFAULT_PORTS, "proxied", *(f"{service} proxy" for service in SERVICES)])
        proxies: dict[str, Proxy] = {
            service: Proxy(ports[service], port=ports[f"{service} proxy"]) for service in SERVICES
        }
        proxies["kafka"] = KafkaProxy(ports["proxied"], port=ports["kafka proxy"])
        return cls({name: ports[name] for name in DEFAULT_PORTS}, proxies, ExitStack())

    def __enter__(self) -> Self:
        for proxy in self.proxies.values():
            self._open.enter_context(proxy)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def broker_settings(self) -> dict[str, str]:
        """Settings of the broker that give it an additional listener for the proxy."""
        return proxied_listener(self.proxies["kafka"], self.ports)

    @property
    def kafka(self) -> KafkaProxy:
        """The proxy of Kafka."""
        proxy = self.proxies["kafka"]
        assert isinstance(proxy, KafkaProxy)
        return proxy

    def through(self, settings: Settings) -> Settings:
        """Return ``settings`` with the addresses of the proxies."""
        return evolve(
            settings,
            kafka_bootstrap_servers=f"127.0.0.1:{self.kafka.port}",
            schema_registry_url=through(settings.schema_registry_url, self.proxies["schema-registry"]),
            chroma_url=through(settings.chroma_url, self.proxies["chroma"]),
            database_url=through(settings.database_url, self.proxies["postgres"]),
        )

    def heal(self, services: Iterable[str] = SERVICES) -> None:
        """Remove all network faults of ``services``."""
        for service in services:
            self.proxies[service].heal()


def through(address: str, proxy: Proxy) -> str:
    """Return ``address`` with the host and port of ``proxy``."""
    parts = urlsplit(address)
    account, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{account}{at}127.0.0.1:{proxy.port}"))


class Faults:
    """The actions in this module. After each action, the network works and Kafka runs again."""

    def __init__(self, network: Network, stack: LocalStack, chance: random.Random) -> None:
        self._network = network
        self._stack = stack
        self._random = chance
        self._turns: dict[str, list[str]] = {}
        self.actions: dict[str, Action] = {
            "latency": Action(lambda: self._next("latency"), self._latency),
            "slow acknowledgements": Action(lambda: self._next("slow acknowledgements"), self._delay_answers),
            "reset": Action(lambda: self._next("reset"), self._reset),
            "half-open": Action(lambda: self._next("half-open"), self._half_open),
            "cut": Action(lambda: self._next("cut"), self._cut),
            "stall kafka": Action(lambda: "kafka", self._freeze),
            "late request": Action(lambda: "kafka", self._delay_request),
        }

    def _next(self, action: str) -> str:
        """Return the dependency for the next ``action``.

        Each dependency is used once, in random order, before a dependency is used again.
        """
        turns = self._turns.setdefault(action, [])
        if not turns:
            turns += self._random.sample(SERVICES, len(SERVICES))
        return turns.pop()

    def _latency(self, service: str) -> str:
        latency_s, seconds = self._random.uniform(0.02, 0.3), self._random.uniform(2, 6)
        way = Conditions(latency_s=latency_s, jitter_s=latency_s, loss=0.05)
        self._network.proxies[service].set_conditions(up=way, down=way)
        self._wait_and_heal(service, seconds)
        return f"added {latency_s * 1000:.0f} ms of latency to {service} for {seconds:.1f} s"

    def _delay_answers(self, service: str) -> str:
        latency_s, seconds = self._random.uniform(0.5, 4), self._random.uniform(3, 8)
        self._network.proxies[service].set_conditions(down=Conditions(latency_s=latency_s))
        self._wait_and_heal(service, seconds)
        return f"delayed the responses of {service} by {latency_s:.1f} s for {seconds:.1f} s"

    def _reset(self, service: str) -> str:
        times = self._random.randint(1, 8)
        for _ in range(times):
            self._network.proxies[service].reset()
            time.sleep(self._random.uniform(0, 0.4))
        return f"reset the connections to {service} {times} times"

    def _half_open(self, service: str) -> str:
        self._network.proxies[service].abandon()
        return f"left the connections to {service} half-open"

    def _cut(self, service: str) -> str:
        seconds = self._random.uniform(2, 12)  # some cuts exceed the session timeout and the transaction timeout
        self._network.proxies[service].cut()
        self._wait_and_heal(service, seconds)
        return f"cut {service} off for {seconds:.1f} s"

    def _wait_and_heal(self, service: str, seconds: float) -> None:
        try:
            time.sleep(seconds)
        finally:
            self._network.heal([service])

    def _freeze(self, service: str) -> str | None:
        pid = next(status.pid for status in self._stack.status() if status.name == service)
        if pid is None:
            return None
        seconds = self._random.uniform(3, 15)
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)
        return f"froze {service} for {seconds:.1f} s"

    def _delay_request(self, _: str) -> str | None:
        kind, overtaken = self._random.choice(_DELAYED_APIS), self._random.randint(1, 3)
        late = LateRequest(
            picks=lambda request: api_of(request) == kind,
            until=lambda request: api_of(request) == Api.END_TXN,
            overtaken=overtaken,
            at_most_s=LATE_PATIENCE_S / 2,
        )
        self._network.kafka.make_late(late)
        delivered = late.delivered.wait(LATE_PATIENCE_S)
        if not delivered:
            self._network.kafka.make_late(None)
            return None
        return f"delivered a {kind.name} of {late.client} before a later END_TXN (number {overtaken})"
