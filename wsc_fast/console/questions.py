"""The questions of the page, and of hubs to each other: views and actions, as types.

A question goes to one hub as JSON, over HTTP from the page and over the bus between hubs; the types
check it at both ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec

# Characters of an id and of a text to send, as they are bounded here; the hub checks them again.
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=8_000)]
Reason = Annotated[str, msgspec.Meta(max_length=123)]
Code = Annotated[int, msgspec.Meta(ge=1000, le=4999)]


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="ask"):
    """Base of all."""


class AskOverview(Question, frozen=True, tag="overview"):
    """The hub; see Views.overview."""

    since: float = 0.0
    line: int = 0


class AskSummary(Question, frozen=True, tag="summary"):
    """A line about the hub."""


class AskClient(Question, frozen=True, tag="client"):
    """A client."""

    id: Id


class AskUser(Question, frozen=True, tag="user"):
    """A user."""

    id: Id


class AskRoom(Question, frozen=True, tag="room"):
    """A room."""

    id: Id


class Find(Question, frozen=True, tag="find"):
    """The ids that hold a text."""

    text: Id


class Operator(msgspec.Struct, frozen=True):
    """The operator who acts.

    Attributes:
        name: as `authenticate` has said.
        address: of his request.
        hub: the name of the hub that he has asked.
    """

    name: str
    address: str
    hub: str


class DisconnectClient(Question, frozen=True, tag="disconnect_client"):
    """A client of the hub is to be closed."""

    id: Id
    code: Code = 1000
    reason: Reason = ""
    operator: Operator | None = None


class SendToClient(Question, frozen=True, tag="send_to_client"):
    """A client of the hub is to get a text message."""

    id: Id
    text: Text
    operator: Operator | None = None


class DisconnectUser(Question, frozen=True, tag="disconnect_user"):
    """All clients of a user are to be closed, on all hubs."""

    id: Id
    code: Code = 1000
    reason: Reason = ""
    operator: Operator | None = None


class SendToUser(Question, frozen=True, tag="send_to_user"):
    """All clients of a user are to get a HubMessage, on all hubs."""

    id: Id
    text: Text
    operator: Operator | None = None


class SendToRoom(Question, frozen=True, tag="send_to_room"):
    """The members of a room are to get a text message, on all hubs."""

    id: Id
    text: Text
    operator: Operator | None = None


View = AskOverview | AskSummary | AskClient | AskUser | AskRoom | Find
OfClient = DisconnectClient | SendToClient
Action = DisconnectClient | SendToClient | DisconnectUser | SendToUser | SendToRoom


class Done(msgspec.Struct, frozen=True):
    """The answer to an action.

    Attributes:
        text: what was done, for the operator.
    """

    text: str


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to a question.

    Attributes:
        result: JSON; null where the hub knows nothing of that id.
        error: a word for programs; "" where there is a result.
        text: the error in words.
    """

    result: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""
    text: str = ""


_of_hubs: msgspec.json.Decoder[View | OfClient] = msgspec.json.Decoder(View | OfClient)
_of_page: msgspec.json.Decoder[Action] = msgspec.json.Decoder(Action)
_replies = msgspec.json.Decoder(Reply)
encode: Callable[[object], bytes] = msgspec.json.Encoder().encode


def decode_of_hub(data: bytes) -> View | OfClient:
    """A question of another hub; raises msgspec.DecodeError for what is none."""
    return _of_hubs.decode(data)


def decode_action(data: bytes) -> Action:
    """An action of the page; raises msgspec.DecodeError for what is none."""
    return _of_page.decode(data)


def decode_reply(data: bytes) -> Reply:
    """The reply of another hub; raises msgspec.DecodeError for what is none."""
    return _replies.decode(data)
