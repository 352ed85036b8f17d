"""Messages of kept rooms, and what clients that speak wsc.1 are told of them; see kept.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject

from wsc_fast._core.engine cimport Engine
from wsc_fast._core.envelopes cimport plain_entries
from wsc_fast._core.frames cimport FIN_TEXT, encode, with_head
from wsc_fast._core.members cimport KeptRoom, MemberSet, push_all
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
    cdef PyObject* key_ptr = NULL if key is None else <PyObject*>key
    cdef Py_ssize_t queued
    cdef Sink sink
    if room.aware:
        forms = [None] * FORMS
        forms[AWARE] = with_head(frame, head_of(room.id, position, ""))
    engine.fanout.schedule_before_walk(room.items)
    queued = push_skipping(engine, room.items, room, frame, exclude or (), key_ptr, forms)
    for each in exclude or ():
        sink = engine.clients.by_id.get(each)
        if sink is not None and sink.form >= AWARE and is_member(sink, room):
            say(engine, sink, room.id, position, ',"skipped":true')
    return queued


cdef Py_ssize_t push_skipping(
    Engine engine, list items, MemberSet members, bytes frame, tuple exclude, PyObject* key,
    list forms,
) except -1:
    cdef list skipped = None
    cdef Sink sink
    if not exclude:
        return push_all(engine.fanout, items, members, None, frame, key, RUN_NORMAL, forms)
    skipped = [engine.clients.by_id[each] for each in exclude if each in engine.clients.by_id]
    try:
        for sink in skipped:
            sink.skip = True
        return push_all(engine.fanout, items, members, skipped, frame, key, RUN_NORMAL, forms)
    finally:
        for sink in skipped:
            sink.skip = False


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


def take_plain(
    Engine engine not None, str room_id not None, bytes data not None, bytes own not None
):
    """Queues the messages of another hub for the members of a plain room here, or for all clients.

    Args:
        engine: of the hub.
        room_id: "" for all clients.
        data: an envelope.
        own: the name of this hub, whose own messages its members have.

    Returns:
        int | None: how many messages it queued; None: the envelope is not of a plain room.

    Raises:
        ValidationError: these bytes are no envelope. Nothing is queued.
    """
    cdef list entries = plain_entries(data, own)
    cdef tuple entry
    if entries is None:
        return None
    for entry in entries:
        give_plain(engine, room_id, entry[0], entry[1], entry[2])
    return len(entries)


cdef int give_plain(Engine engine, str room_id, bytes frame, exclude, key) except -1:
    cdef list items = engine.clients.everyone
    cdef MemberSet members = None
    cdef PyObject* key_ptr = NULL if key is None else <PyObject*>key
    if room_id:
        members = engine.rooms.get(room_id)
        if members is None:
            return 0
        items = members.items
    engine.fanout.schedule_before_walk(items)
    push_skipping(engine, items, members, frame, exclude or (), key_ptr, None)
    return 0


def is_member(Sink client not None, KeptRoom room not None):
    """Whether a client is a member of a kept room."""
    return client.memberships is not None and room in client.memberships


def say_gap(Engine engine not None, str room_id not None, position):
    """Tells the members of a room who speak wsc.1 that messages may be missing.

    Args:
        engine: of the hub.
        room_id: of the room; "" for messages to all clients of the hub.
        position: in a kept room, that behind the gap; None in a plain one.

    Returns:
        int: how many were told.
    """
    more = "" if position is None else f',"pos":"{position}"'
    return say_to_members(engine, room_id, f'{{"gap":{dumps(room_id)}{more}}}\n'.encode())


def say_bus(Engine engine not None, bint up):
    """Tells all clients who speak wsc.1 whether this hub hears of the others."""
    return say_to_members(engine, "", b'{"bus":true}\n' if up else b'{"bus":false}\n')


cdef Py_ssize_t say_to_members(Engine engine, str room_id, bytes head) except -1:
    cdef bytes frame = encode(FIN_TEXT, PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head))
    cdef MemberSet room = engine.rooms.get(room_id)
    cdef Sink sink
    cdef Py_ssize_t told = 0
    if room is None and room_id:
        return 0
    for sink in list(engine.clients.everyone if room is None else room.items):
        if sink.form >= AWARE:
            push_head(engine, sink, frame)
            told += 1
    return told
