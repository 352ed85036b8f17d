"""The JSON of the HTTP API: requests, answers, and what each field may be.

The OpenAPI document is made from these types (openapi.py), so that it cannot say anything else. The
decoder checks all of it, of a batch too before any of its requests is made. Ids are checked by the
rules of the hub, and the document has these as patterns.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from wsc_fast._core.clients import check_id
from wsc_fast._core.frames import check_close
from wsc_fast.bus.base import MOST_KEY_BYTES
from wsc_fast.bus.kept import MOST_HISTORY
from wsc_fast.errors import ValidationError

# Requests of one batch, and clients that one message leaves out.
MOST_IN_BATCH, MOST_EXCLUDED = 100, 1_000
# Users of one question.
MOST_USERS = 500
# Seconds for which a request may wait for its message to be stored.
MOST_WAIT = 10

# Strings in a body, names of fields among them. The decoder looks at the length of a list once it
# has all of it, and a mebibyte of short strings would take it 100 ms.
MOST_STRINGS = 10_000

T = TypeVar("T")


def _id(what: str, most: int = 256) -> Any:
    # No control characters and no line ends; JSON has no lone surrogates.
    pattern = {"pattern": r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]*$"}
    return Meta(min_length=1, max_length=most, description=what, extra_json_schema=pattern)


RoomId = Annotated[str, _id("The id of a room.")]
UserId = Annotated[str, _id("The id of a user.")]
ClientId = Annotated[str, _id("The id of a client.")]
MessageId = Annotated[str, _id("The id of the message, for clients that drop one they know.")]
IdempotencyKey = Annotated[
    str,
    _id(
        "For 300 seconds a further message to the room under this key is not published. At most "
        f"{MOST_KEY_BYTES} bytes in UTF-8.",
        MOST_KEY_BYTES,
    ),
]
Position = Annotated[str, _id("The position of a message in its room.", 64)]
Text = Annotated[str, Meta(description="A text message.")]
_BASE64 = r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
Data = Annotated[
    bytes,
    Meta(description="A binary message, in base64.", extra_json_schema={"pattern": _BASE64}),
]
Conflation = Annotated[
    str, Meta(description="Replaces a message under the same key that waits for a slow client.")
]
Exclude = Annotated[
    list[ClientId],
    Meta(max_length=MOST_EXCLUDED, description="Ids of clients that do not get the message."),
]
_CODES = [{"minimum": low, "maximum": high} for low, high in ((1000, 1003), (1007, 1014))]
CloseCode = Annotated[
    float,  # to JSON, 4000.0 is an integer
    Meta(
        ge=1000,
        le=4999,
        description="The close code.",
        extra_json_schema={
            "anyOf": [*_CODES, {"minimum": 3000, "maximum": 4999}],
        },
    ),
]


class Request(Struct, forbid_unknown_fields=True):
    """The body of a request."""


class Message(Request, kw_only=True):
    """A message to many clients: either `message` or `data`."""

    message: Text | UnsetType = UNSET
    data: Data | UnsetType = UNSET
    exclude: Exclude = []
    key: Conflation | None = None
    idempotency_key: IdempotencyKey | None = None

    def __post_init__(self) -> None:
        if (self.message is UNSET) == (self.data is UNSET):
            raise ValidationError("Expected one of the fields `message` and `data`")
        for each in self.exclude:
            check_id("client", each)
        if self.idempotency_key is not None:
            check_id("message", self.idempotency_key)

    def payload(self) -> str | bytes:
        """The message as the hub takes it."""
        payload = self.message if self.data is UNSET else self.data
        assert not isinstance(payload, UnsetType)
        return payload


class Publish(Message, kw_only=True):
    """Publishes a message to a room, on all hubs."""

    room: RoomId

    def __post_init__(self) -> None:
        super().__post_init__()
        check_id("room", self.room)


class Broadcast(Message, kw_only=True):
    """Publishes a message to all clients, on all hubs."""


class Send(Request, kw_only=True):
    """Sends a HubMessage to a user's clients, on all hubs."""

    user: UserId
    message: Annotated[str, Meta(description="The content of the HubMessage.")]
    type: Annotated[str, Meta(description="The type of the HubMessage.")] = "text"
    id: MessageId | UnsetType = UNSET
    require_ack: Annotated[
        bool,
        Meta(
            description="It is sent until the user acknowledges it. With offline messages it waits "
            "for a user who is away."
        ),
    ] = False
    wait: Annotated[
        float,
        Meta(
            ge=0,
            le=MOST_WAIT,
            description="With `require_ack`: seconds for which the answer waits until the message "
            "is stored or acknowledged.",
        ),
    ] = 5.0

    def __post_init__(self) -> None:
        check_id("user", self.user)
        if self.id is not UNSET:
            check_id("message", self.id)


class Disconnect(Request, kw_only=True):
    """Closes the connections of a user on all hubs, or that of one client of this hub."""

    user: UserId | UnsetType = UNSET
    client: ClientId | UnsetType = UNSET
    code: CloseCode = 1000
    reason: Annotated[str, Meta(description="Cut to 123 bytes of UTF-8.")] = ""

    def __post_init__(self) -> None:
        if (self.user is UNSET) == (self.client is UNSET):
            raise ValidationError("Expected one of the fields `user` and `client`")
        for kind, value in (("user", self.user), ("client", self.client)):
            if value is not UNSET:
                check_id(kind, value)
        if self.code != int(self.code):
            raise ValidationError(f"a close code must be an integer, not {self.code}")
        check_close(int(self.code), self.reason)


class PublishCall(Publish, kw_only=True, tag="publish", tag_field="do"):
    """A publish in a batch."""


class BroadcastCall(Broadcast, kw_only=True, tag="broadcast", tag_field="do"):
    """A broadcast in a batch."""


class SendCall(Send, kw_only=True, tag="send", tag_field="do"):
    """A send in a batch."""


class DisconnectCall(Disconnect, kw_only=True, tag="disconnect", tag_field="do"):
    """A disconnect in a batch."""


class Batch(Request, kw_only=True):
    """Requests that are made one after the other; each has an answer of its own."""

    requests: Annotated[
        list[PublishCall | BroadcastCall | SendCall | DisconnectCall],
        Meta(min_length=1, max_length=MOST_IN_BATCH),
    ]


class HistoryQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """The query of a history."""

    room: RoomId
    after: Position | None = None
    limit: Annotated[int, Meta(ge=1, le=MOST_HISTORY)] = 100


class PresenceQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """The query of a page of the users in a room."""

    room: RoomId
    cursor: Annotated[str, Meta(max_length=32, pattern=r"^[0-9]*$")] = ""


class OnlineQuestion(Request, kw_only=True):
    """Asks which users are connected."""

    users: Annotated[list[UserId], Meta(min_length=1, max_length=MOST_USERS)]

    def __post_init__(self) -> None:
        for each in self.users:
            check_id("user", each)


class Published(Struct):
    """The answer to a publish or a broadcast."""

    position: Annotated[
        str | None, Meta(description="Of the message in a kept room; null in a plain one.")
    ]
    duplicate: Annotated[
        bool, Meta(description="It was published under this idempotency key before, and not now.")
    ]


class Sent(Struct):
    """The answer to a send."""

    hubs: Annotated[
        int | None,
        Meta(description="How many hubs have queued it for clients; null with `require_ack`."),
    ]
    stored: Annotated[
        bool,
        Meta(description="It is in the offline store, or acknowledged: a crash does not lose it."),
    ]


class Closed(Struct):
    """The answer to a disconnect."""

    clients: Annotated[int, Meta(ge=0, description="How many clients it was, on all hubs.")]


class Error(Struct):
    """The answer to a request that was not done."""

    error: Annotated[str, Meta(description="The kind of the error, for programs.")]
    detail: Annotated[str, Meta(description="The reason, for people.")]


# The document may have a union of these types, and the encoder writes either.
_RESULTS = [{"$ref": f"#/components/schemas/{name}"} for name in ("Published", "Sent", "Closed")]
_Result = Annotated[Any, Meta(extra_json_schema={"anyOf": _RESULTS})]


class Outcome(Struct, omit_defaults=True):
    """The answer to one request of a batch: either `result` or `error`."""

    status: Annotated[int, Meta(description="The status that the request alone would have.")]
    result: _Result = UNSET
    error: Error | UnsetType = UNSET


class Outcomes(Struct):
    """The answers to a batch, in the order of its requests."""

    answers: list[Outcome]


class HistoryMessage(Struct, omit_defaults=True):
    """A message of a history: either `message` or `data`."""

    position: Position
    message: Text | UnsetType = UNSET
    data: Data | UnsetType = UNSET


class History(Struct):
    """A part of the history of a kept room, the oldest message first."""

    messages: list[HistoryMessage]
    top: Annotated[
        str,
        Meta(description="The position of the newest message. If it is not here, more follow."),
    ]


class Present(Struct):
    """A user who is present in a room."""

    user: str
    clients: Annotated[
        int, Meta(ge=0, description="His clients in the room; 0: he left a moment ago.")
    ]


class Presence(Struct):
    """A page of the users in a room, on all hubs; in no order, and one may be on two pages."""

    members: list[Present]
    cursor: Annotated[
        str, Meta(description="The cursor of the next page; empty: this is the last one.")
    ]
    count: Annotated[int, Meta(ge=0, description="How many users are in the room.")]


class Online(Struct):
    """The users among those asked for who are connected to any hub."""

    online: list[str]


class Health(Struct):
    """The state of this hub."""

    status: Literal["ok", "draining"]
    bus: Annotated[
        Literal["none", "up", "down"], Meta(description="Whether it hears of other hubs.")
    ]
    clients: Annotated[int, Meta(ge=0, description="Clients that are connected to this hub.")]


def decoded(kind: type[T], body: bytes) -> T:
    """The body of a request.

    Raises:
        msgspec.ValidationError: a field is not what was expected; the text names it.
        msgspec.DecodeError: it is no JSON.
        ValidationError: it holds too many strings.
    """
    # No string begins with a quote behind a backslash.
    if body.count(b'"') - body.count(b'\\"') > 2 * MOST_STRINGS:
        raise ValidationError(f"Expected at most {MOST_STRINGS} strings in the body")
    try:
        return msgspec.json.decode(body, type=kind)
    except (UnicodeError, RecursionError) as error:
        raise msgspec.DecodeError(f"JSON is malformed: {error}") from None
