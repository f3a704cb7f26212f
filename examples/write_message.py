"""Writes one message."""

from rtfm.events import ChannelKind, DiscordMessage, MessageChange, MessageSource, TimestampMillis
from rtfm.streams import open_producer

message = DiscordMessage(
    message_id="1286754213907726336",
    channel_id="381870553235193857",
    channel_kind=ChannelKind.TEXT,
    author_id="297045071457681409",
    author_name="quillfeather",
    content="tide tables are in the wiki",
    created_at=TimestampMillis(1_726_854_000_123),
    change=MessageChange.CREATED,
    observed_at=TimestampMillis(1_726_854_000_200),
    source=MessageSource.OTHER,
)
with open_producer() as producer:
    producer.send("discord-messages", message)
    producer.flush()
