"""The words that hubs send each other; docs/redis-bus.md has them in a table."""

from __future__ import annotations

from typing import Annotated

import msgspec

from wsc_fast.errors import ValidationError
from wsc_fast.messages import decode_hub_message

# The engine has one queue for each priority, and takes the number as it is.
Priority = Annotated[int, msgspec.Meta(ge=1, le=4)]


class Word(msgspec.Struct, array_like=True, frozen=True):
    """Base of all words: a JSON array of the word's name and its fields, in their order."""


class Also(Word, frozen=True, tag="also"):
    """A user of the hub is on another hub as well."""

    user: str


class Look(Word, frozen=True, tag="look"):
    """The offline store has a message for a user.

    Attributes:
        user, mailbox: of the message.
    """

    user: str
    mailbox: str


class Settled(Word, frozen=True, tag="settled"):
    """A message that the offline store holds has ended.

    Attributes:
        user, mailbox, message_id: of the message.
        outcome: "confirmed", "failed", "timeout" or "dropped"; "again": it has timed out before,
            and its hub sends it once more.
        text: of the error; empty where there is none.
    """

    user: str
    mailbox: str
    message_id: str
    outcome: str
    text: str


class UserMessage(Word, frozen=True, tag="message"):
    """A message without acknowledgement for all clients of a user.

    Attributes:
        user: the id of the user.
        priority: of the HubMessage, 1 to 4.
        message: the HubMessage.
    """

    user: str
    priority: Priority
    message: msgspec.Raw


class ClientMessage(Word, frozen=True, tag="client"):
    """A message for one client.

    Attributes:
        client: its id.
        text: of a text message; None of a binary one.
        data: of a binary message, in Base64; None of a text.
        key: conflation key.
    """

    client: str
    text: str | None
    data: bytes | None
    key: str | None


class Disconnect(Word, frozen=True, tag="disconnect"):
    """All clients of a user are to be closed.

    Attributes:
        user: the id of the user.
        code, reason: of the close frames.
        hub: the hub that waits for the number of clients; "" for none.
        number: of the question.
    """

    user: str
    code: int
    reason: str
    hub: str
    number: int


class Answer(Word, frozen=True, tag="answer"):
    """The answer to a question of a hub.

    Attributes:
        number: of the question.
        hub: that answers.
        value: to `disconnect`, how many clients were closed; to `ages`, for each client of the
            user since when it is connected, in milliseconds since the epoch, and its id.
    """

    number: int
    hub: str
    value: int | list[tuple[int, str]]


class Ages(Word, frozen=True, tag="ages"):
    """A question since when the clients of a user are connected.

    Attributes:
        user: the id of the user.
        hub: the hub that asks.
        number: of the question.
    """

    user: str
    hub: str
    number: int


class CloseClient(Word, frozen=True, tag="close_client"):
    """A client of a user is to be closed for a newer one."""

    user: str
    client: str


class HubQuestion(Word, frozen=True, tag="question"):
    """A question to the hub itself, such as an operator asks by the console of another hub.

    Attributes:
        hub: the hub that asks.
        number: of the question.
        content: JSON that the part which answers understands.
    """

    hub: str
    number: int
    content: msgspec.Raw


class HubReply(Word, frozen=True, tag="reply"):
    """The reply to a question to a hub.

    Attributes:
        number: of the question.
        hub: that replies.
        content: JSON.
    """

    number: int
    hub: str
    content: msgspec.Raw


AnyWord = (
    Also
    | Look
    | Settled
    | UserMessage
    | ClientMessage
    | Disconnect
    | Ages
    | CloseClient
    | Answer
    | HubQuestion
    | HubReply
)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AnyWord)


def encode(word: AnyWord) -> bytes:
    """The bytes that go over the bus."""
    return _encoder.encode(word)


def decode(data: bytes) -> AnyWord:
    """The word that came.

    Raises:
        ValidationError: it is none.
    """
    try:
        data.decode()  # the decoder does not look into a raw part, which clients get as a text
        word = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValidationError(f"no word of a hub: {error}") from None
    if isinstance(word, UserMessage):
        decode_hub_message(bytes(word.message))
    return word
