"""The objects of the fake Discord: people, guilds, channels and messages, with Discord's payload for each.

Tests create and read these objects. The methods of the server take the objects as arguments and change them.
"""

from __future__ import annotations

import itertools
import re
import time
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

from attrs import define, field

VIEW_CHANNEL = 1 << 10
SEND_MESSAGES = 1 << 11
READ_MESSAGE_HISTORY = 1 << 16
READ_AND_WRITE = VIEW_CHANNEL | SEND_MESSAGES | READ_MESSAGE_HISTORY
_EPOCH_MS = 1_420_070_400_000
_count = itertools.count()

Payload = dict[str, Any]


def new_id(at_ms: int | None = None) -> str:
    """Return a new snowflake of ``at_ms`` (None: now). Of the ids of one time, the newest id is the greatest."""
    now_ms = time.time_ns() // 1_000_000 if at_ms is None else at_ms
    return str(((now_ms - _EPOCH_MS) << 22) | (next(_count) & 0x3FFFFF))


def iso_time(snowflake: str) -> str:
    """Return the time that a snowflake contains, as text in Discord's format."""
    return datetime.fromtimestamp(((int(snowflake) >> 22) + _EPOCH_MS) / 1000, UTC).isoformat()


class ChannelType(IntEnum):
    """Discord's channel types that the fake supports."""

    TEXT = 0
    DIRECT = 1
    VOICE = 2
    PUBLIC_THREAD = 11
    PRIVATE_THREAD = 12
    FORUM = 15


@define(eq=False)
class FakePerson:
    """An account of a person or a bot."""

    name: str
    bot: bool = False
    id: str = field(factory=new_id)

    def payload(self) -> Payload:
        return {"id": self.id, "username": self.name, "discriminator": "0", "avatar": None, "bot": self.bot}


@define(eq=False)
class FakeMessage:
    """A message. For messages of the bot, ``sent`` is the body of the request that posted it."""

    channel: FakeChannel
    author: FakePerson
    content: str
    mentions: list[FakePerson] = field(factory=list)
    type: int = 0
    reply_to: FakeMessage | None = None
    attachments: list[Payload] = field(factory=list)
    webhook: bool = False
    edited_timestamp: str | None = None
    sent: Payload = field(factory=dict)
    id: str = field(factory=new_id)

    def payload(self) -> Payload:
        payload: Payload = {
            "id": self.id,
            "channel_id": self.channel.id,
            "author": self.author.payload(),
            "content": self.content,
            "timestamp": iso_time(self.id),
            "edited_timestamp": self.edited_timestamp,
            "tts": False,
            "mention_everyone": False,
            "mentions": [person.payload() for person in self.mentions],
            "mention_roles": [],
            "attachments": self.attachments,
            "embeds": [],
            "pinned": False,
            "type": self.type,
            "flags": self.sent.get("flags", 0),
        }
        if self.webhook:
            payload["webhook_id"] = self.author.id
        if (reference := self.sent.get("message_reference")) and self.reply_to is None:
            payload |= {"message_reference": reference, "referenced_message": None}
        if self.reply_to is not None:
            payload["message_reference"] = {
                "type": 0,
                "message_id": self.reply_to.id,
                "channel_id": self.reply_to.channel.id,
            }
            payload["referenced_message"] = {**self.reply_to.payload(), "referenced_message": None}
        return payload

    def event(self) -> Payload:
        """Return the message as the gateway sends it."""
        guild = self.channel.guild
        if guild is None:
            return self.payload()
        member = {"roles": [], "joined_at": iso_time(guild.id), "deaf": False, "mute": False, "flags": 0}
        return self.payload() | {"guild_id": guild.id} | ({} if self.webhook else {"member": member})

    def pings(self) -> list[str]:
        """Return whom this message of the bot notifies: ids of people and roles, ``everyone`` and ``here``."""
        allowed = self.sent.get("allowed_mentions", {"parse": ["users", "roles", "everyone"], "replied_user": True})
        parse = allowed.get("parse", [])
        named = [
            *(found for found in re.findall(r"<@!?(\d+)>", self.content) if "users" in parse),
            *(found for found in re.findall(r"<@&(\d+)>", self.content) if "roles" in parse),
            *(found for found in re.findall(r"@(everyone|here)", self.content) if "everyone" in parse),
        ]
        if self.reply_to is not None and allowed.get("replied_user"):
            named.append(self.reply_to.author.id)
        return named


@define(eq=False)
class FakeChannel:
    """A channel, thread or direct channel.

    ``overwrites`` maps the id of a role or person to permission bits (allow, deny).
    """

    name: str
    type: ChannelType
    guild: FakeGuild | None = None
    parent: FakeChannel | None = None
    nsfw: bool = False
    overwrites: dict[str, tuple[int, int]] = field(factory=dict)
    archived: bool = False
    recipient: FakePerson | None = None
    messages: list[FakeMessage] = field(factory=list)
    id: str = field(factory=new_id)

    @property
    def is_thread(self) -> bool:
        return self.type in (ChannelType.PUBLIC_THREAD, ChannelType.PRIVATE_THREAD)

    def payload(self) -> Payload:
        payload: Payload = {"id": self.id, "type": int(self.type), "name": self.name, "nsfw": self.nsfw}
        if self.recipient is not None:
            return payload | {"recipients": [self.recipient.payload()]}
        if self.guild is not None:
            payload["guild_id"] = self.guild.id
        if self.parent is not None:
            return payload | {
                "parent_id": self.parent.id,
                "owner_id": "1",
                "message_count": 0,
                "member_count": 1,
                "thread_metadata": {
                    "archived": self.archived,
                    "auto_archive_duration": 1440,
                    "archive_timestamp": iso_time(self.id),
                    "locked": False,
                },
            }
        roles = {role["id"] for role in self.guild.roles} if self.guild else set()
        return payload | {
            "position": 0,
            "parent_id": None,
            "bitrate": 64000,
            "user_limit": 0,
            "available_tags": [],
            "permission_overwrites": [
                {"id": target, "type": 0 if target in roles else 1, "allow": str(allow), "deny": str(deny)}
                for target, (allow, deny) in self.overwrites.items()
            ],
        }


@define(eq=False)
class FakeGuild:
    """A guild. ``everyone`` are the permissions of the role @everyone, whose id is the guild's id."""

    name: str
    everyone: int = READ_AND_WRITE
    channels: list[FakeChannel] = field(factory=list)
    members: list[FakePerson] = field(factory=list)
    roles: list[Payload] = field(init=False)
    id: str = field(factory=new_id)

    def __attrs_post_init__(self) -> None:
        self.roles = [_role(self.id, "@everyone", self.everyone)]

    def role(self, name: str, permissions: int = 0, *, of_bot: FakePerson | None = None) -> str:
        """Add a role and return its id. With ``of_bot``, it is the role that Discord creates for that bot."""
        role = _role(new_id(), name, permissions)
        if of_bot is not None:
            role |= {"managed": True, "tags": {"bot_id": of_bot.id}}
        self.roles.append(role)
        return str(role["id"])

    def channel(
        self,
        name: str,
        *,
        kind: ChannelType = ChannelType.TEXT,
        overwrites: dict[str, tuple[int, int]] | None = None,
        nsfw: bool = False,
    ) -> FakeChannel:
        """Add a channel. Call this before the bot connects, because the fake does not report new channels."""
        channel = FakeChannel(name=name, type=kind, guild=self, overwrites=overwrites or {}, nsfw=nsfw)
        self.channels.append(channel)
        return channel

    def hidden_channel(self, name: str, *, shown_to: str) -> FakeChannel:
        """Add a channel that only one role or person can see."""
        return self.channel(name, overwrites={self.id: (0, VIEW_CHANNEL), shown_to: (VIEW_CHANNEL, 0)})

    def thread(self, parent: FakeChannel, name: str, *, private: bool = False, archived: bool = False) -> FakeChannel:
        """Add a thread, or a post if ``parent`` is a forum. The gateway does not report archived threads."""
        kind = ChannelType.PRIVATE_THREAD if private else ChannelType.PUBLIC_THREAD
        thread = FakeChannel(name=name, type=kind, guild=self, parent=parent, archived=archived)
        self.channels.append(thread)
        return thread

    def payload(self) -> Payload:
        return {
            "id": self.id,
            "name": self.name,
            "owner_id": "1",
            "unavailable": False,
            "member_count": len(self.members),
            "roles": self.roles,
            "channels": [channel.payload() for channel in self.channels if not channel.is_thread],
            "threads": [channel.payload() for channel in self.channels if channel.is_thread and not channel.archived],
            "members": [],
            "emojis": [],
            "stickers": [],
            "features": [],
        }


def _role(role_id: str, name: str, permissions: int) -> Payload:
    return {
        "id": role_id,
        "name": name,
        "permissions": str(permissions),
        "position": 0,
        "color": 0,
        "colors": {"primary_color": 0, "secondary_color": None, "tertiary_color": None},
        "hoist": False,
        "managed": False,
        "mentionable": False,
        "flags": 0,
    }
