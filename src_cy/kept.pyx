"""Messages of kept rooms, and what clients that speak wsc.1 are told of them; see kept.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject

from wsc_fast._core.engine cimport Engine
from wsc_fast._core.envelopes cimport plain_entries
from wsc_fast._core.frames cimport FIN_TEXT, encode, with_head
from wsc_fast._core.members cimport KeptRoom, MemberSet, push_all
from wsc_fast._core.outbox cimport AWARE, FORMS, Limits, OPEN, RUN_NORMAL, Sink

from json import dumps

cdef extern from "net.h" nogil:
    double wsc_now()


cdef list NOTHING = []
# Roughly the bytes of a head line.
cdef Py_ssize_t HEAD_BYTES = 256
# Seconds after which the flush of what was given is waited for no more: the hub is overloaded.
cdef double PATIENCE = 0.1


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
    if queued:
        count_given(engine, PyBytes_GET_SIZE(frame) + HEAD_BYTES)
    for each in exclude or ():
        sink = engine.clients.by_id.get(each)
        if sink is not None and sink.form >= AWARE and is_member(sink, room):
            say(engine, sink, room.id, position, ',"skipped":true')
    return queued


cdef int count_given(Engine engine, Py_ssize_t size) except -1:
    """A message of the bus was queued for some clients."""
    if engine.given_after != engine.fanout.whole_flushes or not engine.given:
        engine.given_after = engine.fanout.whole_flushes
        engine.given = engine.given_bytes = 0
        engine.given_since = wsc_now()
    engine.given += 1
    engine.given_bytes += size
    return 0


cpdef bint may_give(Engine engine) except -1:
    """Whether the outboxes have room for another message of the bus.

    They have none while half of an outbox has been filled since everything was last sent. A bus
    brings many messages in one turn of the loop, and nothing is sent before the turn's end.
    """
    cdef const Limits* limits = &engine.fanout.limits
    if (
        not engine.given
        or engine.given_after != engine.fanout.whole_flushes
        or (2 * engine.given < limits.messages and 2 * engine.given_bytes < limits.nbytes)
    ):
        return True
    if wsc_now() - engine.given_since < PATIENCE:
        return False
    engine.given = 0
    return True


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
    Engine engine not None, str room_id not None, bytes data not None, bytes own not None,
    bint waits,
):
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
    cdef list entries = plain_entries(data, own)
    cdef tuple entry
    cdef Py_ssize_t i = 0
    if entries is None:
        return None
    if waits:
        return len(entries), entries
    for entry in entries:
        if not may_give(engine):
            return len(entries), entries[i:]
        give_plain(engine, room_id, entry[0], entry[1], entry[2])
        i += 1
    return i, NOTHING


cpdef Py_ssize_t give_plain(
    Engine engine, str room_id, bytes frame, object exclude, object key
) except -1:
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
    cdef list items = engine.clients.everyone
    cdef MemberSet members = None
    cdef PyObject* key_ptr = NULL if key is None else <PyObject*>key
    cdef Py_ssize_t queued
    if room_id:
        members = engine.rooms.get(room_id)
        if members is None:
            return 0
        items = members.items
    engine.fanout.schedule_before_walk(items)
    queued = push_skipping(engine, items, members, frame, exclude or (), key_ptr, None)
    if queued:
        count_given(engine, PyBytes_GET_SIZE(frame))
    return queued


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
    return say_to_members(engine, "", bus_head(up))


def say_bus_to(Engine engine not None, Sink client not None, bint up):
    """As `say_bus`, for one client that speaks wsc.1."""
    cdef bytes head = bus_head(up)
    push_head(engine, client, encode(FIN_TEXT, PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head)))


cdef bytes bus_head(bint up):
    return b'{"bus":true}\n' if up else b'{"bus":false}\n'


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
