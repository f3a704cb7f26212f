"""The bot as a service: puts client, outbox and delivery together, from login to drained shutdown.

On SIGTERM or SIGINT the responses under way are posted and committed, the gateway is left, and what was heard is
handed to Kafka, all within ``SHUTDOWN_GRACE_S``. While Discord or Kafka is down it waits, says so once and is not
ready; only what an operator must change ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from functools import partial

import aiohttp
import discord

from rtfm.bot.asking import QuestionSender
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

_CONCURRENT_REPLIES = 8  # so that a channel's rate limit holds up no other channel
_AUTHENTICATION_FAILED = 4004  # Discord's close event codes
_REFUSED_MEND = "Make a new token at https://discord.com/developers/applications under Bot, and set DISCORD_TOKEN."
_SWITCH_ON_INTENT = (
    "Switch on Message Content Intent at https://discord.com/developers/applications, under Bot,"
    " Privileged Gateway Intents."
)


def run_bot(settings: Settings, stop: threading.Event | None = None) -> None:
    """Run the bot until SIGTERM, SIGINT or ``stop``.

    Raises ConfigError for a token that is missing or refused, an intent that is off and whatever the contracts
    refuse, and Unavailable when Discord closes the connection for good.
    """
    if not settings.discord_token:
        raise ConfigError(
            "DISCORD_TOKEN is not set",
            hint="Make a bot at https://discord.com/developers/applications and put its token into .env.",
        )
    asyncio.run(_serve(settings, settings.discord_token, Stop(stop)))


async def _serve(settings: Settings, token: str, stop: Stop) -> None:
    ready = {"discord": lambda: "not logged in to Discord yet"}
    with (
        stop.handle_signals(),
        open_monitoring(settings, ready) as health,
        CrashJournal.of(settings, "bot") as quarantine,
    ):
        beating = asyncio.create_task(beat(health))
        contracts = open_contracts(settings)
        with contextlib.closing(SqlArchive(settings.database_url)) as archive:
            with EventProducer(settings, contracts) as producer:
                # Two, so that messages do not wait for the archive when it is down: only questions need it.
                heard = Outbox(producer)
                questions = Outbox(QuestionSender(producer, archive, clock_ms=now_ms))
                health.ready_when("outbox", heard.trouble)
                health.ready_when("questions", questions.trouble)
                heard.start()
                questions.start()
                publish = partial(_publish, heard, questions)
                try:
                    await _run(settings, token, contracts, archive, publish, health, quarantine, stop)
                finally:
                    left = await asyncio.gather(
                        *(asyncio.to_thread(outbox.close, settings.shutdown_grace_s) for outbox in (heard, questions))
                    )
                    # The outboxes have waited for their records as long as there is time; the producer need not again.
                    await asyncio.to_thread(producer.close, 0)
                    if sum(left):
                        log.error("events could not be handed to Kafka before the end", events=sum(left))
        beating.cancel()
    log.info("stopped")


async def beat(health: Health) -> None:
    """Tell the watchdog that the event loop passes: one that hangs posts nothing and hears nothing."""
    while True:
        health.beat("event loop")
        await asyncio.sleep(POLL_S)


def _publish(heard: Outbox, questions: Outbox, topic: str, event: DiscordMessage | BotQuery) -> bool:
    return (questions if isinstance(event, BotQuery) else heard).put(topic, event)


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
    """Run gateway and responses side by side until ``stop``, or until one of them ends with an error."""
    stopped = asyncio.create_task(_wait(stop))
    for step in (partial(_look_up_schemas, contracts), partial(archive.migrate, wait_s=0)):
        await asyncio.to_thread(retry_until_available, step, stop)
    client = await _log_in_once_available(settings, token, publish, health, stop)
    if client is None:
        return
    draining = threading.Event()
    pipeline = Pipeline(
        KafkaConfig.of(settings),
        contracts,
        group=contracts.catalogue.group(RESPONSES),
        topic=RESPONSES,
        handler=_handler(ReplyDelivery(client, archive, clock_ms=now_ms), asyncio.get_running_loop()),
        health=health,
        concurrency=_CONCURRENT_REPLIES,
        dead_letters=DeadLetterPolicy.of(settings),
        quarantine=quarantine,
        grace_s=settings.shutdown_grace_s,
        stop=draining,
    )
    async with client:
        gateway = asyncio.create_task(_listen(client))
        responses = asyncio.create_task(_answer(client, pipeline, draining))
        try:
            await asyncio.wait({stopped, gateway, responses}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            draining.set()
            stop.set()
            # Replies under way need the client, so it is closed after them.
            await asyncio.wait({responses})
    for task in (gateway, responses):
        if task.done():
            task.result()


async def _wait(stop: Stop) -> None:
    while not stop.is_set():
        await asyncio.sleep(POLL_S)


def _look_up_schemas(contracts: Contracts) -> None:
    """Raise ConfigError, with how to fix it, for a schema that the bot writes with and that is not registered."""
    for topic in (MESSAGES, QUERIES):
        contracts.registry.id_for(topic, contracts.codec(topic).schema)


async def _log_in_once_available(
    settings: Settings, token: str, publish: Publish, health: Health, stop: Stop
) -> RtfmClient | None:
    """A client that is logged in, however long Discord is down; None when ``stop`` came first."""
    loop = asyncio.get_running_loop()

    def log_in() -> RtfmClient:
        return asyncio.run_coroutine_threadsafe(_log_in(settings, token, publish, health), loop).result()

    return await asyncio.to_thread(retry_until_available, log_in, stop)


async def _log_in(settings: Settings, token: str, publish: Publish, health: Health) -> RtfmClient:
    """A client that is logged in; a new one each time, as discord.py's cannot log in twice."""
    client = RtfmClient(
        publish,
        query_expiry_s=settings.query_expiry_s,
        api=settings.discord_api,
        gateway=settings.discord_gateway,
    )
    health.ready_when("discord", client.trouble)
    try:
        await client.login(token)
    except discord.LoginFailure as exc:
        await client.close()
        raise ConfigError("Discord refused DISCORD_TOKEN", hint=_REFUSED_MEND) from exc
    except (discord.HTTPException, discord.GatewayNotFound, aiohttp.ClientError, OSError) as exc:
        await client.close()
        raise Unavailable("Discord", f"Discord does not answer: {type(exc).__name__}: {exc}") from exc
    return client


async def _listen(client: RtfmClient) -> None:
    """Hold the gateway's connection until the client is closed; discord.py connects again by itself."""
    try:
        await client.connect()
    except discord.PrivilegedIntentsRequired as exc:
        raise ConfigError(
            "the bot may not read messages: its Message Content Intent is off", hint=_SWITCH_ON_INTENT
        ) from exc
    except discord.ConnectionClosed as exc:
        if exc.code == _AUTHENTICATION_FAILED:
            raise ConfigError("Discord refused DISCORD_TOKEN", hint=_REFUSED_MEND) from exc
        raise Unavailable("Discord", f"Discord closed the connection for good, code {exc.code}") from exc


async def _answer(client: RtfmClient, pipeline: Pipeline, draining: threading.Event) -> None:
    """Post responses once the client knows its guilds, until ``draining``."""
    while not client.is_ready():
        if draining.is_set():
            return
        await asyncio.sleep(POLL_S)
    await asyncio.to_thread(pipeline.run)


def _handler(delivery: ReplyDelivery, loop: asyncio.AbstractEventLoop) -> Handler:
    """What the pipeline's threads call; the posting itself happens on Discord's event loop."""

    def handle(records: Sequence[Record]) -> Sequence[Output]:
        for record in records:
            asyncio.run_coroutine_threadsafe(delivery.deliver(record.event), loop).result()
        return []

    return handle
