from wsc_fast._core.connection import Client
from wsc_fast._core.engine import Engine
from wsc_fast._core.members import KeptRoom

def room_of(engine: Engine, room_id: str) -> KeptRoom | None:
    """The kept room with this id as this hub has it; None: it has no members here.

    Thread-safety: the loop's thread, like all of these functions.
    """

def give(
    engine: Engine,
    room: KeptRoom,
    position: str,
    frame: bytes,
    exclude: tuple[str, ...] | None,
    key: str | None,
) -> int:
    """Queues a message of a kept room for its members.

    Args:
        engine: of the hub.
        room: the room.
        position: of the message.
        frame: of the message, plain.
        exclude: ids of clients that do not get it, or None. One that speaks wsc.1 is told of the
            position.
        key: the conflation key, or None.

    Returns:
        int: how many members it was queued for.
    """

def may_give(engine: Engine) -> bool:
    """Whether the outboxes have room for another message of the bus.

    They have none while half of an outbox has been filled since everything was last sent. A bus
    brings many messages in one turn of the loop, and nothing is sent before the turn's end.
    """

def give_one(engine: Engine, client: Client, room_id: str, position: str, frame: bytes) -> None:
    """Queues a message of a kept room for one client that speaks wsc.1."""

def say(engine: Engine, client: Client, room_id: str, position: str, more: str) -> None:
    """Tells a client that speaks wsc.1 of a position without a message.

    Args:
        engine: of the hub.
        client: any.
        room_id: of the kept room.
        position: in it.
        more: further fields of the head, as JSON, each after a comma.
    """

def say_bus(engine: Engine, up: bool) -> int:
    """Tells all clients who speak wsc.1 whether this hub hears of the others."""

def say_bus_to(engine: Engine, client: Client, up: bool) -> None:
    """As `say_bus`, for one client that speaks wsc.1."""

def say_gap(engine: Engine, room_id: str, position: str | None) -> int:
    """Tells the members of a room who speak wsc.1 that messages may be missing.

    Args:
        engine: of the hub.
        room_id: of the room; "" for messages to all clients of the hub.
        position: in a kept room, that behind the gap; None in a plain one.

    Returns:
        int: how many were told.
    """

def take_plain(
    engine: Engine, room_id: str, data: bytes, own: bytes, waits: bool
) -> tuple[int, list[tuple[bytes, tuple[str, ...] | None, str | None]]] | None:
    """Queues the messages of another hub for the members of a plain room here, or for all clients.

    Args:
        engine: of the hub.
        room_id: "" for all clients.
        data: an envelope.
        own: the name of this hub, whose own messages its members have.
        waits: other messages wait for room in the outboxes; so these do, too.

    Returns:
        tuple[int, list[tuple[bytes, tuple[str, ...] | None, str | None]]] | None: how many messages
        the envelope has, and those that have to wait: frame, ids of clients that do not get it,
        conflation key. None: the envelope is not of a plain room.

    Raises:
        ValidationError: these bytes are no envelope. Nothing is queued.
    """

def give_plain(
    engine: Engine, room_id: str, frame: bytes, exclude: tuple[str, ...] | None, key: str | None
) -> int:
    """Queues a message of another hub for the members of a plain room here, or for all clients.

    Args:
        engine: of the hub.
        room_id: "" for all clients.
        frame: of the message, plain.
        exclude: ids of clients that do not get it, or None.
        key: the conflation key, or None.

    Returns:
        int: how many clients it was queued for.
    """

def enter_room(engine: Engine, client: Client, room: KeptRoom) -> bool:
    """Makes a client a member of a kept room, where it had to wait for that.

    Returns:
        bool: whether it was none before, and the room is still there.
    """

def is_member(client: Client, room: KeptRoom) -> bool:
    """Whether a client is a member of a kept room."""
