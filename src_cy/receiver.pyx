"""Frames out of bytes (receiver.pxd tells the way): the parser, reassembly, UTF-8, bounds.

Rules
1.  The size that a frame claims costs nothing: memory grows with received bytes. A message that
    would be too long is refused at the head that says so.
2.  Text is checked as it comes, and refused at the first byte that is wrong (RFC 6455 section 8.1
    lets us). Where a whole message is in the buffer, decoding checks it.
3.  After a fault, a close frame of the peer, or the end of the connection nothing is heard
    (`input_closed`): input is read, so that our close frame is not overtaken by a reset, and
    forgotten.
4.  While we are closing, data is skipped without being kept, and only a close frame is heard.
5.  Messages are held, up to a bound, while it is not known whose they are. The rest waits as it
    came, and the transport is paused (`hold_back`), so that TCP holds back all behind it.
6.  No `return` within an `except` (here and in the other modules): without memory for the traceback
    Cython 3.3 would release one that it does not have.

The buffer belongs to the engine, and to one connection only from the transport's read to the end
of `buffer_updated`, which are one step of the loop. So nothing may point into it any longer, and
what a read leaves behind goes into `tail` (less than a control frame) or `unfinished`. A loop
inside a callback reads within this step: `ReadBuffer.in_use` tells, and the next read has another
buffer.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.float cimport DBL_MAX
from libc.limits cimport INT_MAX
from libc.math cimport INFINITY
from libc.string cimport memcpy

from wsc_fast._core.clock cimport passed
from wsc_fast._core.deflate cimport INFLATE_INVALID, INFLATE_TOO_BIG, RSV1, Codec
from wsc_fast._core.engine cimport Engine
from wsc_fast._core.outbox cimport CLOSING, CONNECTING, Sink
from wsc_fast._core.read_buffer cimport READ_HEADROOM, ReadBuffer
from wsc_fast._core.read_turns cimport ReadTurns

cdef extern from "wire.h":
    pass  # receiver.pxd declares what is in it

cdef extern from "net.h" nogil:
    double wsc_coarse_now()
    double wsc_now()

cdef extern from "Python.h":
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    void* PyUnicode_1BYTE_DATA(object)

# A message, and each piece of one, costs this besides its payload while it is held back.
cdef enum:
    HELD_COST = 128
    # How many frames of a heavy read are taken before the next look at the clock.
    FRAMES_AT_ONCE = 8
    # By how many bytes a compressed message may be longer than what it holds, besides 1 in 8: a
    # fixed Huffman code takes up to 9 bits a byte (RFC 1951 section 3.2.6), and a compressor with
    # little memory adds the heads of its blocks.
    DEFLATE_GROWTH = 64

cdef dict HEAD_FAULTS = {
    WSC_BAD_OPCODE: "a reserved opcode",
    WSC_BAD_CONTROL: "a control frame that is fragmented or too long",
    WSC_BAD_LENGTH: "a length not in its shortest form, or with its highest bit set",
    WSC_NOT_MASKED: "a frame without a mask",
}


cdef bytes as_frame(int first, const uint8_t* data, Py_ssize_t size):
    """A whole frame under the mask 0, which begins with this byte."""
    cdef bytes head = bytes([first])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 0x10000:
        head += b"\xfe" + (<object>size).to_bytes(2, "big")
    else:
        head += b"\xff" + (<object>size).to_bytes(8, "big")
    return b"%b\0\0\0\0%b" % (head, <bytes>data[:size])


cdef class Unfinished:
    """A message of which some bytes have come (internal)."""

    def __cinit__(self):
        self.payload = bytearray()
        self.ascii = True


cdef class Arrival:
    """The part of a connection that lasts until it is known whose it is (internal)."""

    def __cinit__(self):
        self.look_slot = -1


cdef class Receiver(Sink):
    """The receiving half of a connection (internal; `Client` is the public class)."""

    def __cinit__(self, Engine engine not None, *args):
        self.engine = engine
        self.inflatable = INT_MAX
        self.last_seen = wsc_coarse_now() + passed

    def get_buffer(self, size_hint):
        """Where the transport is to read to (asyncio.BufferedProtocol)."""
        return self.next_view()

    def buffer_updated(self, Py_ssize_t size):
        """The transport has read (asyncio.BufferedProtocol)."""
        self.was_read(size)

    cdef object next_view(self):
        cdef ReadBuffer buffer = self.engine.read_buffer
        cdef ReadTurns turns = self.engine.turns
        if buffer.in_use:
            buffer.change()
        if self.drains:
            # aiofastnet 1.2 does not look again at what it has decrypted or received before it was
            # paused, and ends the connection once that fills its buffer.
            return buffer.whole_view
        if not turns.has_turn(self.turn):
            return buffer.least_view
        if (
            self.state == CONNECTING or self.engine.rates.pausing or turns.crowded
        ):
            return buffer.small_view
        return buffer.view

    cdef int was_read(self, Py_ssize_t size) except -1:
        if (
            size >= self.engine.turns.heavy_read or self.handshake is not None
            or self.deferred_input is not None or self.listening or self.doubts
            or (self.context is not None and self.context.client_window)
        ):
            return self.take_heavy_read(size)
        return self.take_read(size)

    cdef bytes copy_read(self, Py_ssize_t size):
        return PyBytes_FromStringAndSize(<const char*>self.engine.read_buffer.area, size)

    cdef int take_copy(self, bytes data) except -1:
        if self.engine.read_buffer.in_use:
            self.engine.read_buffer.change()
        memcpy(self.engine.read_buffer.area, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        return self.was_read(PyBytes_GET_SIZE(data))

    cdef int take_heavy_read(self, Py_ssize_t size) except -1:
        """A read that costs much: large, of a request, or of a client that was lately refused."""
        cdef double began
        if self.listening:
            self.put_aside(self.engine.read_buffer.area, size)
            self.interrupted = self.wait_for_turn() or self.interrupted
            return 0
        if self.deferred_input is not None or not self.engine.turns.has_turn(self.turn):
            self.put_aside(self.engine.read_buffer.area, size)
            return self.engine.turns.wait(self)
        began = wsc_now()
        self.engine.turns.deadline = began + self.engine.turns.budget
        try:
            self.take_read(size)
        finally:
            self.engine.turns.deadline = INFINITY
        return self.engine.turns.spend(
            self,
            wsc_now() - began,
            size >= self.engine.turns.heavy_read or self.deferred_input is not None,
        )

    cdef int take_deferred(self) except -1:
        """Takes the rest of a small read, which inflates to much, like that of a heavy one."""
        cdef double began
        self.deferred = False
        if self.deferred_input is None or self.is_paused():
            return 0
        if not self.engine.turns.has_turn(self.turn):
            return self.engine.turns.wait(self)
        began = wsc_now()
        self.engine.turns.deadline = began + self.engine.turns.budget
        try:
            self.take_deferred_input()
        finally:
            self.engine.turns.deadline = INFINITY
        return self.engine.turns.spend(self, wsc_now() - began, self.deferred_input is not None)

    cdef bint is_paused(self) noexcept:
        return False

    cdef int put_aside(self, const uint8_t* data, Py_ssize_t size) except -1:
        """Keeps what was read until its time comes."""
        cdef bytes more
        if self.input_closed:
            return 0
        more = PyBytes_FromStringAndSize(<const char*>data, size)
        self.deferred_input = more if self.deferred_input is None else self.deferred_input + more
        return 0

    cdef int put_back(self, const uint8_t* data, Py_ssize_t size) except -1:
        """Keeps what is left of a read: it comes before what was read since."""
        cdef bytes since = self.deferred_input
        self.deferred_input = None
        self.put_aside(data, size)
        if since is not None:
            self.deferred_input = (
                since if self.deferred_input is None else self.deferred_input + since
            )
        return 0

    cdef int listened(self) except -1:
        """The received bytes are taken; bytes read inside a callback have a turn of their own."""
        self.listening = False
        if self.interrupted:
            self.interrupted = False
            self.engine.turns.queue(self)
        return 0

    cdef int take_deferred_input(self) except -1:
        cdef bytes deferred_input = self.deferred_input
        self.deferred_input = None
        if deferred_input is not None:
            self.feed(PyBytes_AS_STRING(deferred_input), PyBytes_GET_SIZE(deferred_input))
        return 0

    cdef int take_rest(self) except -1:
        """Takes the bytes put aside, beyond the rate too: the peer's stream has ended."""
        cdef double deadline = self.engine.turns.deadline
        self.engine.turns.deadline = DBL_MAX
        try:
            while self.deferred_input is not None and not self.listening:
                self.halted = False
                self.take_deferred_input()
        finally:
            self.engine.turns.deadline = deadline
        return 0

    cdef int take_read(self, Py_ssize_t size) except -1:
        cdef uint8_t* data = self.engine.read_buffer.area
        cdef object _buffer = self.engine.read_buffer.view  # kept, though another takes its place
        cdef Py_ssize_t before
        if self.input_closed:
            return 0
        if self.handshake is not None:
            self.handshake.received(PyBytes_FromStringAndSize(<const char*>data, size))
            return 0
        self.last_seen = wsc_coarse_now() + passed
        self.engine.read_buffer.in_use = self.listening = True
        try:
            if self.tail is not None:
                before = PyBytes_GET_SIZE(self.tail)
                assert before <= READ_HEADROOM
                data -= before
                size += before
                memcpy(data, PyBytes_AS_STRING(self.tail), before)
                self.tail = None
            self.consume(data, size)
            if self.gathered is not None:
                self.hear_gathered()
        except BaseException as error:
            self.input_closed = True  # where the next frame begins is not known any more
            self.failed(error)
        finally:
            self.engine.read_buffer.in_use = False
            self.listened()
        if self.deferred:
            self.take_deferred()
        return 0

    cdef int feed(self, const char* data, Py_ssize_t size) except -1:
        """Takes bytes that were read before this was the transport's protocol."""
        cdef Py_ssize_t room = len(self.engine.read_buffer.view)
        cdef Py_ssize_t some
        while size > 0:
            some = min(size, room)
            if self.deferred_input is not None:
                return self.put_aside(<const uint8_t*>data, size)
            if self.engine.read_buffer.in_use:
                self.engine.read_buffer.change()
            memcpy(self.engine.read_buffer.area, data, some)
            self.take_read(some)
            data += some
            size -= some
        return 0

    cdef int consume(self, uint8_t* data, Py_ssize_t size) except -1:
        cdef wsc_head head
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t left
        cdef Py_ssize_t some
        cdef unsigned int frames = 0
        cdef bint light = (
            self.engine.turns.deadline == INFINITY and self.state != CONNECTING
            and (self.context is None or not self.context.client_window)
        )
        self.inflatable = <int>self.engine.turns.heavy_read if light else INT_MAX
        # Each turn may call the application, which may end this connection.
        while at < size and not self.input_closed:
            left = size - at
            if self.halted:
                return self.put_back(data + at, left)
            frames += 1
            if (
                (frames % FRAMES_AT_ONCE == 0 or self.inflated)
                and self.engine.turns.deadline != INFINITY
                and wsc_now() > self.engine.turns.deadline
            ):
                self.inflated = False
                self.put_back(data + at, left)
                return self.engine.turns.wait(self)
            if self.remaining:
                some = left if <uint64_t>left < self.remaining else <Py_ssize_t>self.remaining
                at += some
                self.take_part(data + at - some, some)
                if self.deferred:
                    return self.put_aside(data + at, size - at)
                continue
            some = wsc_read_head(data + at, left, &head)
            if some < 0:
                return self.refuse(1002, HEAD_FAULTS[some])
            if some > 0 and head.size <= <uint64_t>(left - some):
                if head.opcode >= CLOSE or self.may_begin(&head):
                    self.take_frame(&head, data + at + some)
                elif self.halted:
                    return self.put_back(data + at, left)
                at += some + <Py_ssize_t>head.size
                if self.deferred:
                    return self.put_aside(data + at, size - at)
            elif some > 0 and head.opcode < CLOSE:
                if self.may_begin(&head):
                    self.begin_part(&head)
                elif self.halted:
                    return self.put_back(data + at, left)
                at += some
                self.remaining = head.size
            else:
                self.tail = PyBytes_FromStringAndSize(<const char*>data + at, left)
                return 0
        return 0

    cdef int take_parsed(self, const wsc_head* head, uint8_t* payload) except -1:
        """Takes a frame that another parser has read and unmasked, or puts it aside."""
        cdef bytes frame
        if not self.halted and (head.opcode >= CLOSE or self.may_begin(head)):
            return self.take_frame(head, payload)
        if self.halted:
            frame = as_frame(head.fin << 7 | head.rsv << 4 | head.opcode, payload, head.size)
            return self.put_aside(<const uint8_t*>PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))
        return 0

    cdef int take_frame(self, const wsc_head* head, uint8_t* payload) except -1:
        """Takes a whole frame: of data one that may begin."""
        cdef object content = None
        if head.opcode >= CLOSE:
            if head.rsv:
                return self.refuse(1002, "a reserved bit is set")
            wsc_unmask(payload, payload, head.size, head.key)
            return self.take_control(head.opcode, <const char*>payload, head.size)
        if not head.fin or self.unfinished is not None:
            self.begin_part(head)
            self.remaining = head.size
            return self.take_part(payload, head.size)
        if head.rsv:
            wsc_unmask(payload, payload, head.size, head.key)
            return self.take_deflated(head.opcode, payload, head.size)
        if head.opcode == BINARY:
            content = PyBytes_FromStringAndSize(NULL, head.size)
            wsc_unmask(<uint8_t*>PyBytes_AS_STRING(content), payload, head.size, head.key)
        else:
            content = PyUnicode_New(head.size, 127)
            if not wsc_unmask_ascii(
                <uint8_t*>PyUnicode_1BYTE_DATA(content), payload, head.size, head.key
            ):
                wsc_unmask(payload, payload, head.size, head.key)
                try:
                    content = PyUnicode_DecodeUTF8(<const char*>payload, head.size, NULL)
                except UnicodeDecodeError:
                    content = None
                if content is None:
                    return self.refuse(1007, "invalid UTF-8")
        return self.take_message(content, head.size)

    cdef bint may_begin(self, const wsc_head* head) except -1:
        """Whether a data frame is to be heard now; refuses what the rules or the bounds forbid.

        Where it has to wait, and all behind it, this is `halted` afterwards.
        """
        cdef Py_ssize_t held = 0
        cdef Py_ssize_t bound = self.engine.max_message_size
        if self.state >= CLOSING:
            return False
        if head.rsv and (head.rsv != RSV1 or not self.inflates or head.opcode == CONTINUATION):
            # RFC 6455 section 5.2; RFC 7692 section 6.1: on the first frame of a message only.
            self.refuse(1002, "a reserved bit is set")
            return False
        # RFC 6455 section 5.4: the first frame has the opcode, all others are continuations.
        if (head.opcode == CONTINUATION) != (self.unfinished is not None):
            self.refuse(1002, "a fragment out of order")
            return False
        if self.unfinished is not None:
            held = PyByteArray_GET_SIZE(self.unfinished.payload)
        if head.rsv or (self.unfinished is not None and self.unfinished.deflated):
            # The limit is of the message, which is measured once it is inflated.
            bound += (bound >> 3) + DEFLATE_GROWTH
        if <Py_ssize_t>head.size > bound - held:
            self.refuse_over("max_message_size", 1009, "message too big")
            return False
        if self.holds():
            held += self.arrival.held_bytes + HELD_COST + <Py_ssize_t>head.size
            # A context of its own inflates a message once, to a size that only shows then.
            if held > self.engine.auth_input_bytes or (
                head.rsv and self.context is not None and self.context.client_window
            ):
                self.hold_back()
                return False
            self.arrival.held_bytes += HELD_COST
        return True

    cdef bint holds(self) noexcept:
        """Whether what comes is held, within the bound: all but the hello that is awaited."""
        return self.is_held() and (self.greeted or not self.arrival.awaits_hello)

    cdef Arrival arriving(self):
        if self.arrival is None:
            self.arrival = Arrival.__new__(Arrival)
        return self.arrival

    cdef int begin_part(self, const wsc_head* head) except -1:
        cdef Unfinished unfinished = self.unfinished
        if unfinished is None:
            unfinished = Unfinished.__new__(Unfinished)
            unfinished.opcode = head.opcode
            unfinished.deflated = head.rsv != 0
            unfinished.since = self.last_seen
            self.unfinished = unfinished
        unfinished.fin = head.fin
        unfinished.key = head.key
        unfinished.fragments += 1
        if unfinished.fragments > self.engine.max_fragments:
            return self.refuse_over("max_fragments", 1008, "too many fragments")
        return 0

    cdef int take_part(self, const uint8_t* data, Py_ssize_t size) except -1:
        cdef Unfinished message = self.unfinished
        cdef Py_ssize_t held
        cdef uint8_t* out
        self.remaining -= size
        if message is None:
            return 0  # of a frame that is not heard
        held = PyByteArray_GET_SIZE(message.payload)
        PyByteArray_Resize(message.payload, held + size)
        out = <uint8_t*>PyByteArray_AS_STRING(message.payload) + held
        if (
            message.opcode != TEXT or message.deflated or (<wsc_utf8*>message.text).need
            or not wsc_unmask_ascii(out, data, size, message.key)
        ):
            message.ascii = False
            wsc_unmask(out, data, size, message.key)
            if (
                message.opcode == TEXT and not message.deflated
                and not wsc_check_utf8(<wsc_utf8*>message.text, out, size)
            ):
                return self.refuse(1007, "invalid UTF-8")
        message.key = wsc_turn_key(message.key, size)
        if self.remaining == 0 and message.fin:
            return self.end_part()
        return 0

    cdef int end_part(self) except -1:
        cdef object content
        cdef Unfinished message = self.unfinished
        cdef bytearray payload = message.payload
        cdef Py_ssize_t size = PyByteArray_GET_SIZE(payload)
        self.unfinished = None
        if message.deflated:
            return self.take_deflated(
                message.opcode, <const uint8_t*>PyByteArray_AS_STRING(payload), size
            )
        if message.opcode == BINARY:
            return self.take_message(bytes(payload), size)
        if (<wsc_utf8*>message.text).need:
            return self.refuse(1007, "a text that ends within a code point")
        if not message.ascii:
            return self.take_message(
                PyUnicode_DecodeUTF8(PyByteArray_AS_STRING(payload), size, NULL), size
            )
        content = PyUnicode_New(size, 127)
        memcpy(PyUnicode_1BYTE_DATA(content), PyByteArray_AS_STRING(payload), size)
        return self.take_message(content, size)

    cdef int take_deflated(self, int opcode, const uint8_t* data, Py_ssize_t size) except -1:
        cdef Codec codec = self.engine.codec
        cdef Py_ssize_t limit = self.engine.max_message_size
        cdef Py_ssize_t room = limit
        cdef object content = None
        cdef Py_ssize_t message = size
        if self.holds():
            # A message that is held counts with its inflated size, in which it is held.
            room = max(self.engine.auth_input_bytes - self.arrival.held_bytes, 0)
            limit = min(limit, room)
        if self.inflatable != INT_MAX:
            limit = min(limit, <Py_ssize_t>self.inflatable)
        if self.context is not None and self.context.client_window:
            size = self.context.inflate(data, size, limit)
        else:
            size = codec.inflate(codec.inflater, True, data, size, limit)
        if size < 0:
            codec.shrink()
        if size == INFLATE_TOO_BIG and self.inflatable != INT_MAX and limit == self.inflatable:
            return self.defer(opcode, data, message)
        if size == INFLATE_TOO_BIG:
            if limit == room and self.holds():
                self.hold_back()
                return self.defer(opcode, data, message) if self.halted else 0
            return self.refuse_over("max_message_size", 1009, "message too big")
        if size == INFLATE_INVALID:
            return self.refuse(1007, "invalid compressed data")
        self.inflated = True
        if self.inflatable != INT_MAX:
            self.inflatable -= <int>size
        try:
            if opcode == BINARY:
                content = PyBytes_FromStringAndSize(<const char*>codec.scratch, size)
            else:
                content = PyUnicode_DecodeUTF8(<const char*>codec.scratch, size, NULL)
        except UnicodeDecodeError:
            pass
        finally:
            codec.shrink()
        if content is None:
            return self.refuse(1007, "invalid UTF-8")
        return self.take_message(content, size)

    cdef int defer(self, int opcode, const uint8_t* data, Py_ssize_t size) except -1:
        """Puts a whole compressed message aside, as one frame under the mask 0."""
        self.deferred = True
        self.deferred_input = as_frame(0xC0 | opcode, data, size)
        return 0

    cdef int hold_back(self) except -1:
        return 0

    cdef int refuse(self, int code, str reason) except -1:
        self.input_closed = True
        self.unfinished = None
        return self.fail(code, reason, None)

    cdef int refuse_over(self, str limit, int code, str reason) except -1:
        self.engine.over(limit)
        self.input_closed = True
        self.unfinished = None
        return self.fail(code, reason, limit)

    cdef int take_message(self, object content, Py_ssize_t size) except -1:
        return 0

    cdef int hear_gathered(self) except -1:
        return 0

    cdef int take_control(self, int opcode, const char* payload, Py_ssize_t size) except -1:
        return 0

    cdef int fail(self, int code, str reason, str limit) except -1:
        return 0

    cdef int failed(self, object error) except -1:
        raise error
