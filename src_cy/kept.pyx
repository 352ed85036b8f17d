"""Messages of kept rooms, and what clients that speak wsc.1 are told of them; see kept.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject

from wsc_fast._core.engine cimport Engine
from wsc_fast._core.frames cimport FIN_TEXT, encode, with_head
from wsc_fast._core.members cimport KeptRoom, push_all
from wsc_fast._core.outbox cimport AWARE, FORMS, OPEN, RUN_NORMAL, Sink

from json import dumps


cdef bytes head_of(str room_id, str position, str more):
    return f'{{"room":{dumps(room_id)},"pos":"{position}"{more}}}\n'.encode()


def room_of(Engine engine not None, str room_id not None):
    """The kept room with this id as this hub has it; None: it has no members here.

    Thread-safety: the loop's thread, like all of these functions.
    """
    room = engine.rooms.get(room_id)
    return room if isinstance(room, KeptRoom) else None


def give(
    Engine engine not None, KeptRoom room not None, str position not None, bytes frame not None,
    exclude, key,
):
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
    cdef list forms = None
    cdef list skipped = None
    cdef PyObject* key_ptr = NULL if key is None else <PyObject*>key
    cdef Sink sink
    if room.aware:
        forms = [None] * FORMS
        forms[AWARE] = with_head(frame, head_of(room.id, position, ""))
    engine.fanout.schedule_before_walk(room.items)
    if not exclude:
        return push_all(engine.fanout, room.items, room, None, frame, key_ptr, RUN_NORMAL, forms)
    skipped = [engine.clients.by_id[each] for each in exclude if each in engine.clients.by_id]
    try:
        for sink in skipped:
            sink.skip = True
        queued = push_all(
            engine.fanout, room.items, room, skipped, frame, key_ptr, RUN_NORMAL, forms
        )
    finally:
        for sink in skipped:
            sink.skip = False
    for sink in skipped:
        if sink.form >= AWARE and sink.memberships is not None and room in sink.memberships:
            say(engine, sink, room.id, position, ',"skipped":true')
    return queued


def give_one(
    Engine engine not None, Sink client not None, str room_id not None, str position not None,
    bytes frame not None,
):
    """Queues a message of a kept room for one client that speaks wsc.1."""
    push_head(engine, client, with_head(frame, head_of(room_id, position, "")))


def say(
    Engine engine not None, Sink client not None, str room_id not None, str position not None,
    str more not None,
):
    """Tells a client that speaks wsc.1 of a position without a message.

    Args:
        engine: of the hub.
        client: any.
        room_id: of the kept room.
        position: in it.
        more: further fields of the head, as JSON, each after a comma.
    """
    cdef bytes head = head_of(room_id, position, more)
    push_head(engine, client, encode(FIN_TEXT, PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head)))


cdef Py_ssize_t say_all(Engine engine, KeptRoom room, bytes head) except -1:
    cdef bytes frame = encode(FIN_TEXT, PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head))
    cdef Sink sink
    cdef Py_ssize_t told = 0
    for sink in list(room.items):
        if sink.form >= AWARE:
            push_head(engine, sink, frame)
            told += 1
    return told


cdef int push_head(Engine engine, Sink sink, bytes frame) except -1:
    """Queues a frame that has its head; a client without room for it is closed."""
    if sink.state != OPEN:
        return 0
    engine.push_aware(sink, frame)
    return 0


def enter_room(Engine engine not None, Sink client not None, KeptRoom room not None):
    """Makes a client a member of a kept room, where it had to wait for that.

    Returns:
        bool: whether it was none before, and the room is still there.
    """
    if client.state != OPEN or room.deleted:
        return False
    return engine.enter_room(client, room)


def is_member(Sink client not None, KeptRoom room not None):
    """Whether a client is a member of a kept room."""
    return client.memberships is not None and room in client.memberships


def say_gap(Engine engine not None, KeptRoom room not None, str position not None):
    """Tells the members who speak wsc.1 that messages are missing before this position.

    Returns:
        int: how many were told.
    """
    cdef bytes head = f'{{"gap":{dumps(room.id)},"pos":"{position}"}}\n'.encode()
    return say_all(engine, room, head)
