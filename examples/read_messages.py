"""Prints what is said, and goes on where it stopped."""

from rtfm.events import MessageChange
from rtfm.streams import open_reader

with open_reader("discord-messages", group="my-service") as reader:
    for record in reader:
        message = record.event
        if message is None:  # undecodable; record.error says why
            print("skipped", record.partition, record.offset, record.error, flush=True)
        elif message.change is MessageChange.DELETED:
            print("deleted", message.message_id, flush=True)
        else:
            print(message.author_name, "said", message.content, flush=True)
        reader.commit(record)
