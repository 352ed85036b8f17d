"""The reader of RESP, in which Redis and Valkey answer; see resp.pxd."""

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memchr, memcmp, memcpy, memmove

from wsc_fast.errors import BusError

cdef extern from "net.h" nogil:
    double wsc_now()

cdef enum:
    # A number's line is shorter: a sign, 19 digits, and the line's end.
    MOST_NUMBER = 32
    # Messages between two looks at the clock.
    LOOK_AT_CLOCK = 8

cdef const char* MESSAGE = b"3\r\n$7\r\nmessage\r\n"
cdef Py_ssize_t MESSAGE_LENGTH = 16


class ReplyError(Exception):
    """An error that the server answered; the text is the server's."""


cdef Py_ssize_t number_line(const char* line, Py_ssize_t length, long long* value) noexcept:
    """Reads a whole number and the end of its line.

    Returns the bytes that they take; 0 where more have to come, -1 where it is something else.
    """
    cdef Py_ssize_t place = 0
    cdef bint negative = False
    cdef unsigned long long number = 0
    if length > 0 and (line[0] == b"-" or line[0] == b"+"):
        negative = line[0] == b"-"
        place = 1
    cdef Py_ssize_t first = place
    while place < length and b"0" <= line[place] <= b"9":
        if place - first >= 19:
            return -1
        number = number * 10 + <unsigned>(line[place] - c"0")
        place += 1
    if place < length and (place == first or line[place] != b"\r"):
        return -1
    if place + 1 >= length:
        return 0 if length < MOST_NUMBER else -1
    if line[place + 1] != b"\n" or number > 9223372036854775807ull:
        return -1
    value[0] = -<long long>number if negative else <long long>number
    return place + 2


cdef class RespReader:
    """Reads the answers of one connection to Redis or Valkey (internal).

    Args:
        on_message: called with the name and the data of each message of a named channel. If it
            returns False, no more come until `may_go_on`.
        on_stray: called with the channel and the data of each other message.
        on_reply: called with each other reply.
        on_broken: called once, with the error, when what came is no RESP or breaks a bound, or when
            a callback raised.
        most: bytes of one reply, at most.
        budget: seconds of a turn of the loop, at most.
        may_go_on: asked in each turn after `on_message` has returned False; None: in the next turn.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self, on_message, on_stray, on_reply, on_broken, *, most, budget=0.002, may_go_on=None
    ):
        self.on_message = on_message
        self.on_stray = on_stray
        self.on_reply = on_reply
        self.on_broken = on_broken
        self.most = most
        self.budget = budget
        self.may_go_on = may_go_on
        self.names = {}
        self.set_memory(READ_AT_ONCE)

    cdef int set_memory(self, Py_ssize_t size) except -1:
        """Has memory of this size, with what is left of the old one at its front."""
        cdef bytearray memory = bytearray(size)
        cdef char* area = PyByteArray_AS_STRING(memory)
        if self.end > self.start:
            memcpy(area, self.area + self.start, self.end - self.start)
        self.end -= self.start
        self.scanned -= self.start
        self.start = 0
        self.memory, self.area, self.size = memory, area, size
        self.view = memoryview(memory)
        return 0

    def attach(self, transport, loop):
        """Reads from a transport from now on.

        Args:
            transport: of the connection.
            loop: on which the reader has its turns.
        """
        self.transport = transport
        self.loop = loop

    def stop(self):
        """No callback is called any more."""
        self.stopped = True

    def set_name(self, channel, name):
        """Names a channel.

        Args:
            channel: as the server knows it.
            name: what `on_message` gets for it; None: none.
        """
        self.last_channel = None
        if name is None:
            self.names.pop(channel, None)
        else:
            self.names[channel] = name

    def get_buffer(self, Py_ssize_t sizehint):
        """Memory for the next read, for the transport.

        Args:
            sizehint: is not used.
        """
        self.make_room()
        return self.view[self.end:]

    cdef int make_room(self) except -1:
        cdef Py_ssize_t left = self.end - self.start
        if self.size > READ_AT_ONCE and left < READ_AT_ONCE // 2:
            return self.set_memory(READ_AT_ONCE)
        if left == self.size:
            return self.set_memory(self.size * 2)
        # A long reply is moved only where there is no room left behind it.
        if self.start and (left < 4096 or self.end == self.size):
            memmove(self.area, self.area + self.start, left)
            self.end = left
            self.scanned -= self.start
            self.start = 0
        return 0

    def buffer_updated(self, Py_ssize_t count):
        """The transport has read so many bytes.

        Args:
            count: of bytes.
        """
        if self.stopped:
            return
        self.end += count
        self.bytes_read += count
        cdef bint full = self.end == self.size
        # A callback that runs the loop must not have replies taken twice.
        if not self.waiting and (self.go(True) or full):
            self.wait_for_turn()

    def go_on(self):
        """In its turn: takes what is left, and has the transport read again."""
        if not self.stopped and self.enough and self.may_go_on is not None and not self.may_go_on():
            self.loop.call_soon(self.go_on)
            return
        self.waiting = self.enough = False
        if self.stopped:
            return
        if self.go(True):
            self.wait_for_turn()
        elif not self.stopped and not self.transport.is_closing():
            self.transport.resume_reading()

    def go(self, bint quiet=False):
        """Takes what is complete.

        Args:
            quiet: errors go to `on_broken`.

        Returns:
            bool: there is more for the next turn.
        """
        if self.taking:
            return True
        self.taking = True
        try:
            return self.take() == 1
        except Exception as error:
            if not quiet:
                raise
            if not self.stopped:
                self.stopped = True
                self.on_broken(error)
            return False
        finally:
            self.taking = False

    cdef int wait_for_turn(self) except -1:
        if self.stopped or self.waiting or self.transport is None:
            return 0
        self.waiting = True
        if not self.transport.is_closing():
            self.transport.pause_reading()
        self.loop.call_soon(self.go_on)
        return 0

    cdef int take(self) except -1:
        """Takes replies; returns 1 where the budget ended it, 0 where nothing complete is left."""
        cdef double deadline = wsc_now() + self.budget
        cdef unsigned int count = 0
        cdef Py_ssize_t place
        cdef object value
        while self.start < self.end and not self.stopped:
            # A reply that `scan` knows to be incomplete is no complete message either.
            if self.scanned != self.start or not self.take_message():
                if not self.scan():
                    return 0
                if not self.take_message():
                    place = self.start
                    value = self.build(&place)
                    self.start = self.scanned = place
                    self.on_reply(value)
            if self.enough:
                return 1
            count += 1
            if count % LOOK_AT_CLOCK == 0 and self.start < self.end and wsc_now() > deadline:
                return 1
        if self.start == self.end:
            self.start = self.end = self.scanned = 0
        return 0

    cdef int take_message(self) except -1:
        """Takes a message of a channel, if that is what comes next, and it is complete."""
        cdef const char* area = self.area + self.start
        cdef Py_ssize_t length = self.end - self.start
        cdef Py_ssize_t place = 1 + MESSAGE_LENGTH
        cdef Py_ssize_t step
        cdef long long channel_length = 0
        cdef long long data_length = 0
        cdef const char* channel
        if (
            length < place
            or (area[0] != b"*" and area[0] != b">")
            or memcmp(area + 1, MESSAGE, MESSAGE_LENGTH) != 0
        ):
            return 0
        step = self.string_at(area, length, place, &channel_length)
        if step <= 0:
            return 0
        channel = area + place + step
        place += step + channel_length + 2
        step = self.string_at(area, length, place, &data_length)
        if step <= 0:
            return 0
        cdef bytes data = PyBytes_FromStringAndSize(area + place + step, data_length)
        self.start += place + step + data_length + 2
        self.scanned = self.start
        self.messages += 1
        cdef bytes last = self.last_channel
        if (
            last is None
            or PyBytes_GET_SIZE(last) != channel_length
            or memcmp(PyBytes_AS_STRING(last), channel, channel_length) != 0
        ):
            last = PyBytes_FromStringAndSize(channel, channel_length)
            self.last_name = self.names.get(last)
            self.last_channel = last
        if self.last_name is None:
            self.on_stray(last, data)
        else:
            self.enough = self.on_message(self.last_name, data) is False
        return 1

    cdef Py_ssize_t string_at(
        self, const char* area, Py_ssize_t length, Py_ssize_t place, long long* count
    ) except -2:
        """The bytes of the line before a string that is complete; 0 or -1 where none is."""
        if place >= length or area[place] != b"$":
            return 0
        cdef Py_ssize_t step = number_line(area + place + 1, length - place - 1, count)
        if step <= 0 or count[0] < 0 or count[0] > self.most:
            return 0
        cdef Py_ssize_t after = place + 1 + step + count[0]
        if after + 2 > length or area[after] != b"\r" or area[after + 1] != b"\n":
            return 0
        return 1 + step

    cdef int scan(self) except -1:
        """Goes on looking for the end of the reply at `start`; returns 1 where it was found."""
        cdef const char* line
        cdef const char* line_end
        cdef Py_ssize_t left, step = 0
        cdef long long count
        cdef char kind
        while True:
            if self.scanned - self.start > self.most:
                self.refuse_size()
            left = self.end - self.scanned
            if left == 0:
                return 0
            line = self.area + self.scanned
            kind = line[0]
            if kind in (b"$", b"!", b"=", b"*", b"~", b">", b"%", b"|"):
                count = 0
                step = number_line(line + 1, left - 1, &count)
                if step == 0:
                    return 0
                if step < 0 or count < -1 or (count == -1 and kind != b"$" and kind != b"*"):
                    self.refuse(line, left)
                step += 1
                if kind in (b"$", b"!", b"="):
                    if count >= 0:
                        if count > self.most:
                            self.refuse_size()
                        if step + count + 2 > left:
                            return 0
                        if line[step + count] != b"\r" or line[step + count + 1] != b"\n":
                            self.refuse(line + step + count, 2)
                        step += count + 2
                else:
                    if count > self.most:
                        self.refuse_size()
                    if kind in (b"%", b"|"):
                        # The value that the attributes are of follows them.
                        count = 2 * count + (kind == b"|")
                    if count > 0:
                        if self.depth == MOST_DEPTH:
                            raise BusError(
                                f"the server answered with more than {MOST_DEPTH} lists within "
                                "each other"
                            )
                        self.missing[self.depth] = count
                        self.depth += 1
                        self.scanned += step
                        continue
            elif kind in (b"+", b"-", b":", b",", b"#", b"_", b"("):
                line_end = <const char*>memchr(line, c"\n", min(left, MOST_LINE))
                if line_end == NULL:
                    if left >= MOST_LINE:
                        self.refuse(line, left)
                    return 0
                if line_end - line < 2 or (line_end - 1)[0] != b"\r":
                    self.refuse(line, left)
                step = line_end + 1 - line
            else:
                self.refuse(line, left)
            self.scanned += step
            while self.depth:
                self.missing[self.depth - 1] -= 1
                if self.missing[self.depth - 1]:
                    break
                self.depth -= 1
            if not self.depth:
                return 1

    cdef object build(self, Py_ssize_t* place):
        """The reply at a place, which is complete; `place` is then behind it."""
        cdef const char* line = self.area + place[0]
        cdef char kind = line[0]
        cdef long long count = 0
        cdef Py_ssize_t step
        cdef bytes text
        if kind in (b"$", b"!", b"=", b"*", b"~", b">", b"%", b"|"):
            step = 1 + number_line(line + 1, self.end - place[0] - 1, &count)
            place[0] += step
            if count < 0:
                return None
            if kind in (b"*", b"~", b">"):
                return [self.build(place) for _ in range(count)]
            if kind == b"%":
                return [(self.build(place), self.build(place)) for _ in range(count)]
            if kind == b"|":
                for _ in range(2 * count):
                    self.build(place)
                return self.build(place)
            text = PyBytes_FromStringAndSize(line + step, count)
            place[0] += count + 2
            if kind == b"!":
                return ReplyError(text.decode("utf-8", "replace"))
            # A verbatim string begins with its format: `txt:`.
            return text[4:] if kind == b"=" else text
        step = <const char*>memchr(line, c"\n", self.end - place[0]) + 1 - line
        text = PyBytes_FromStringAndSize(line + 1, step - 3)
        place[0] += step
        try:
            if kind == b":" or kind == b"(":
                return int(text)
            if kind == b",":
                return float(text)
        except ValueError:
            self.refuse(line, step)
        if kind == b"-":
            return ReplyError(text.decode("utf-8", "replace"))
        if kind == b"#":
            return text == b"t"
        return None if kind == b"_" else text

    cdef int refuse(self, const char* line, Py_ssize_t length) except -1:
        raise BusError(
            "the server does not speak RESP, the protocol of Redis and Valkey: it sent "
            f"{PyBytes_FromStringAndSize(line, min(length, 40))!r}"
        )

    cdef int refuse_size(self) except -1:
        raise BusError(f"the server's answer is larger than {self.most} bytes")
