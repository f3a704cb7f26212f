"""Runs the bot as a service, from the login to the end of the shutdown.

The service consists of the Discord client, two outboxes that send events to Kafka, and a pipeline that posts responses.
On SIGTERM or SIGINT the bot first posts and commits unfinished responses, then leaves the gateway, and then sends the
events in the outboxes. Posting and sending can each take up to ``SHUTDOWN_GRACE_S``. While Discord or Kafka is down,
the bot waits, is not ready, and logs the reason once. If an operator must fix an error, or if Discord closes the
connection permanently, the bot ends by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from functools import partial

import aiohttp
import discord

from rtfm.bot.asking import OpenQuestionSender
from rtfm.bot.client import Publish, RtfmClient
from rtfm.bot.delivery import ReplyDelivery
from rtfm.bot.outbox import Outbox
from rtfm.clock import now_ms
from rtfm.contracts import Contracts, open_contracts
from rtfm.errors import ConfigError, Unavailable
from rtfm.events import BotQuery, DiscordMessage
from rtfm.knowledge.archive import SqlArchive
from rtfm.names import MESSAGES, QUERIES, RESPONSES
from rtfm.service import POLL_S, Stop, open_monitoring, retry_until_available
from rtfm.settings import Settings
from rtfm.streams.connection import KafkaConfig
from rtfm.streams.dead_letters.limits import DeadLetterPolicy
from rtfm.streams.pipeline import Handler, Output, Pipeline, Record
from rtfm.streams.producer import EventProducer
from rtfm.streams.quarantine import CrashJournal, Quarantine
from rtfm.telemetry import Health, get_logger

log = get_logger(__name__)

_CONCURRENT_REPLIES = 8  # if it were 1, the rate limit of a channel would also delay replies in other channels
_AUTHENTICATION_FAILED = 4004  # one of Discord's close event codes
_REFUSED_LOGIN_HINT = (
    "Create a new token at https://discord.com/developers/applications under Bot, and set DISCORD_TOKEN."
)
_INTENT_HINT = (
    "Turn on Message Content Intent at https://discord.com/developers/applications, under Bot,"
    " Privileged Gateway Intents."
)


def run_bot(settings: Settings, stop: threading.Event | None = None) -> None:
    """Run the bot until SIGTERM, SIGINT or ``stop``.

    Raises ConfigError if the token is missing or refused, if the Message Content Intent is off, or if the contracts are
    invalid or not registered. Raises Unavailable if Discord closes the connection permanently.
    """
    if not settings.discord_token:
        raise ConfigError(
            "DISCORD_TOKEN is not set",
            hint="Create a bot at https://discord.com/developers/applications and put its token into .env.",
        )
    asyncio.run(_serve(settings, settings.discord_token, Stop(stop)))


async def _serve(settings: Settings, token: str, stop: Stop) -> None:
    ready = {"discord": lambda: "not logged in to Discord yet"}
    with (
        stop.handle_signals(),
        open_monitoring(settings, ready) as health,
        CrashJournal.of(settings, "bot") as quarantine,
    ):
        heartbeat = asyncio.create_task(beat(health))
        contracts = open_contracts(settings)
        with contextlib.closing(SqlArchive(settings.database_url)) as archive:
            with EventProducer(settings, contracts) as producer:
                # Only questions need the archive. Messages have their own outbox, so that they are sent even while the
                # archive is down.
                messages = Outbox(producer)
                questions = Outbox(OpenQuestionSender(producer, archive, clock_ms=now_ms))
                health.ready_when("outbox", messages.not_ready_reason)
                health.ready_when("questions", questions.not_ready_reason)
                messages.start()
                questions.start()
                publish = partial(_publish, messages, questions)
                try:
                    await _run(settings, token, contracts, archive, publish, health, quarantine, stop)
                finally:
                    left = await asyncio.gather(
                        *(
                            asyncio.to_thread(outbox.close, settings.shutdown_grace_s)
                            for outbox in (messages, questions)
                        )
                    )
                    # The outboxes have already waited for the acknowledgements, so the producer need not wait.
                    await asyncio.to_thread(producer.close, 0)
                    if sum(left):
                        log.error("events lost at shutdown, not sent to Kafka in time", events=sum(left))
        heartbeat.cancel()
    log.info("stopped")


async def beat(health: Health) -> None:
    """Report to the watchdog that the event loop runs. While the loop hangs, the bot neither listens nor posts."""
    while True:
        health.beat("event loop")
        await asyncio.sleep(POLL_S)


def _publish(messages: Outbox, questions: Outbox, topic: str, event: DiscordMessage | BotQuery) -> bool:
    return (questions if isinstance(event, BotQuery) else messages).offer(topic, event)


async def _run(
    settings: Settings,
    token: str,
    contracts: Contracts,
    archive: SqlArchive,
    publish: Publish,
    health: Health,
    quarantine: Quarantine,
    stop: Stop,
) -> None:
    """Listen to the gateway and post responses until ``stop``, or until the gateway or the pipeline ends."""
    stopped = asyncio.create_task(_wait_for_stop(stop))
    for step in (partial(_check_schemas, contracts), partial(archive.migrate, wait_s=0)):
        await asyncio.to_thread(retry_until_available, step, stop)
    client = await _log_in_when_available(settings, token, publish, health, stop)
    if client is None:
        return
    draining = threading.Event()
    pipeline = Pipeline(
        KafkaConfig.of(settings),
        contracts,
        group=contracts.catalogue.group(RESPONSES),
        topic=RESPONSES,
        handler=_build_handler(ReplyDelivery(client, archive, clock_ms=now_ms), asyncio.get_running_loop()),
        health=health,
        concurrency=_CONCURRENT_REPLIES,
        dead_letters=DeadLetterPolicy.of(settings),
        quarantine=quarantine,
        grace_s=settings.shutdown_grace_s,
        stop=draining,
    )
    async with client:
        gateway = asyncio.create_task(_run_gateway(client))
        responses = asyncio.create_task(_run_responses(client, pipeline, draining))
        try:
            await asyncio.wait({stopped, gateway, responses}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            draining.set()
            stop.set()
            # Unfinished replies need the client, so the client is closed only after the pipeline has ended.
            await asyncio.wait({responses})
    for task in (gateway, responses):
        if task.done():
            task.result()


async def _wait_for_stop(stop: Stop) -> None:
    while not stop.is_set():
        await asyncio.sleep(POLL_S)


def _check_schemas(contracts: Contracts) -> None:
    """Raise ConfigError if the schema of an event that the bot produces is not registered."""
    for topic in (MESSAGES, QUERIES):
        contracts.registry.id_for(topic, contracts.codec(topic).schema)


async def _log_in_when_available(
    settings: Settings, token: str, publish: Publish, health: Health, stop: Stop
) -> RtfmClient | None:
    """Wait until Discord answers, and return a client that is logged in, or None if ``stop`` was set first."""
    loop = asyncio.get_running_loop()

    def log_in() -> RtfmClient:
        return asyncio.run_coroutine_threadsafe(_log_in(settings, token, publish, health), loop).result()

    return await asyncio.to_thread(retry_until_available, log_in, stop)


async def _log_in(settings: Settings, token: str, publish: Publish, health: Health) -> RtfmClient:
    """Return a new client that is logged in. A client cannot log in twice, so each attempt creates a new one."""
    client = RtfmClient(
        publish,
        query_expiry_s=settings.query_expiry_s,
        api=settings.discord_api,
        gateway=settings.discord_gateway,
    )
    health.ready_when("discord", client.not_ready_reason)
    try:
        await client.login(token)
    except discord.LoginFailure as exc:
        await client.close()
        raise ConfigError("Discord refused DISCORD_TOKEN", hint=_REFUSED_LOGIN_HINT) from exc
    except (discord.HTTPException, discord.GatewayNotFound, aiohttp.ClientError, OSError) as exc:
        await client.close()
        raise Unavailable("Discord", f"Discord did not answer: {type(exc).__name__}: {exc}") from exc
    return client


async def _run_gateway(client: RtfmClient) -> None:
    """Listen to the gateway until the client is closed. discord.py reconnects by itself."""
    try:
        await client.connect()
    except discord.PrivilegedIntentsRequired as exc:
        raise ConfigError(
            "the bot cannot read messages because its Message Content Intent is off", hint=_INTENT_HINT
        ) from exc
    except discord.ConnectionClosed as exc:
        if exc.code == _AUTHENTICATION_FAILED:
            raise ConfigError("Discord refused DISCORD_TOKEN", hint=_REFUSED_LOGIN_HINT) from exc
        raise Unavailable("Discord", f"Discord closed the connection permanently, code {exc.code}") from exc


async def _run_responses(client: RtfmClient, pipeline: Pipeline, draining: threading.Event) -> None:
    """Wait until the client knows its guilds, then post responses until ``draining`` is set."""
    while not client.is_ready():
        if draining.is_set():
            return
        await asyncio.sleep(POLL_S)
    await asyncio.to_thread(pipeline.run)


def _build_handler(delivery: ReplyDelivery, loop: asyncio.AbstractEventLoop) -> Handler:
    """Return a handler that runs in the pipeline's threads and posts replies on Discord's event ``loop``."""

    def handle(records: Sequence[Record]) -> Sequence[Output]:
        for record in records:
            asyncio.run_coroutine_threadsafe(delivery.deliver(record.event), loop).result()
        return []

    return handle
