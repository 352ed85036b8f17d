"""From a message of the peer to the application's callback; see hearing.pxd."""

from cpython.contextvars cimport PyContext_Copy, PyContext_Enter, PyContext_Exit
from cpython.exc cimport PyErr_Clear
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_Contains, PyUnicode_GET_LENGTH

from wsc_fast._core.engine cimport NO_ACK, SETTLED
from wsc_fast._core.outbox cimport AWARE, CLOSED
from wsc_fast._core.pings cimport PingedConnection

cdef extern from "wire.h":
    pass  # receiver.pxd declares what is in it

cdef extern from "Python.h":
    # Without the check for an exception that `PyContext_Enter` has here.
    int try_to_enter "PyContext_Enter"(PyObject* context)

# Each acknowledgement holds this text: a message without it is none, and need not be decoded.
cdef str ACK_MARK = '"message_id"'

cdef enum:
    # The longest head line of a message of wsc.1; a hello may name 100 rooms.
    HEAD_BYTES = 16384
    # The longest text that may be an acknowledgement.
    ACK_CHARACTERS = 4096
    # How many messages in a row a client has to be allowed after a refused one (receiver.pxd).
    DOUBTS = 64
    # Bytes that a message takes besides its payload, about; and that a list of messages takes: what
    # comes then is in the next one.
    MESSAGE_COST = 64
    MOST_GATHERED = 262144
    # Messages of a list about which `authorize_publish` is asked: that is one piece of work.
    MOST_ASKED = 256


cdef class HeardConnection(PingedConnection):
    """A connection whose messages are heard (internal; `Client` is the public class)."""

    # --- the context of its callbacks ---

    cdef object enter_context(self):
        cdef object context = self.variables
        if context is None:
            context = self.variables = PyContext_Copy(self.engine.loop_context.variables)
        elif self.inbox is not None:
            context = PyContext_Copy(context)  # the Inbox's task may go on meanwhile
        if try_to_enter(<PyObject*>context) < 0:
            PyErr_Clear()
            context = PyContext_Copy(context)
            PyContext_Enter(context)
        return context

    cdef int drop_context(self) except -1:
        # It may hold the client itself, once that was set in it.
        if self.state == CLOSED and self.inbox is None:
            self.variables = None
        return 0

    # --- receiving ---

    cdef int take_message(self, object content, Py_ssize_t size) except -1:
        cdef object handler
        cdef object result
        cdef int answer = NO_ACK
        if self.form >= AWARE and not self.released:
            content = self.take_head(content, size)
            if content is None:
                return 0
        if self.is_held():
            self.arrival.held_bytes += size
            self.arrival.held.append((content, size))
            return 0
        if (
            self.engine.ack_filter is not None
            and type(content) is str
            and PyUnicode_GET_LENGTH(content) <= ACK_CHARACTERS
            and PyUnicode_Contains(content, ACK_MARK)
        ):
            answer = self.engine.ack_filter(self, content)
        # The hub has asked for an acknowledgement that settles something: no rate bounds it.
        if self.engine.rates.bounded and answer != SETTLED and not self.within_rate(size):
            return 0
        self.count_message(size)
        if answer != NO_ACK:
            return 0
        if self.engine.gathers:
            return self.gather(content, size)
        # With an inbox, the hub asks in the message's turn.
        if self.engine.publish_filter is not None and self.inbox is None:
            if not self.engine.publish_filter(self, content):
                self.doubts = DOUBTS
                return 0
            if self.doubts:
                self.doubts -= 1
        handler = self.engine.message_handler
        if handler is not None and self.inbox is None:
            result = None
            try:
                result = self.call_handler(handler, content)
            except BaseException as error:
                self.engine.application.callback_failed(self, error)
            if result is not None:
                self.engine.application.wait_for_result(self, result)
        elif self.engine.message_handlers or self.engine.publish_filter is not None:
            self.engine.application.receive(self, self.engine.message_handlers, content)
        return 0

    cdef int gather(self, object content, Py_ssize_t size) except -1:
        cdef bint alone = self.engine.alone is not None and self.engine.alone(content)
        if alone:
            self.hear_gathered()
        if self.gathered is None:
            self.gathered = []
        self.gathered.append(content)
        self.gathered_bytes += size + MESSAGE_COST
        if (
            alone or self.gathered_bytes >= MOST_GATHERED or not self.listening
            or (self.engine.publish_filter is not None and len(self.gathered) >= MOST_ASKED)
        ):
            return self.hear_gathered()
        return 0

    cdef int hear_gathered(self) except -1:
        """Calls the callback with the list, as `take_message` does with a message."""
        cdef list gathered = self.gathered
        cdef object handler = self.engine.message_handler
        cdef object result = None
        if gathered is None:
            return 0
        self.gathered = None
        self.gathered_bytes = 0
        if self.engine.publish_filter is not None and self.inbox is None:
            gathered = self.allowed(gathered)
            if not gathered:
                return 0
        if handler is None or self.inbox is not None:
            self.engine.application.receive(self, self.engine.message_handlers, gathered)
            return 0
        try:
            result = self.call_handler(handler, gathered)
        except BaseException as error:
            self.engine.application.callback_failed(self, error)
        if result is not None:
            self.engine.application.wait_for_result(self, result)
        return 0

    cdef list allowed(self, list messages):
        """The messages that the client may publish."""
        cdef list allowed = []
        for message in messages:
            if not self.engine.publish_filter(self, message):
                self.doubts = DOUBTS
                continue
            allowed.append(message)
            if self.doubts:
                self.doubts -= 1
        return allowed

    cdef object take_head(self, object content, Py_ssize_t size):
        """Takes the head line of a message of wsc.1; the payload, or None where there is none."""
        cdef bint is_text = type(content) is str
        cdef Py_ssize_t at = content.find("\n" if is_text else b"\n", 0, HEAD_BYTES + 1)
        if at == 0 and self.greeted:
            return content[1:]
        if at <= 0:
            self.refuse(1002, "a message of wsc.1 has no head line")
            return None
        head = self.engine.decode_head(content[:at])
        if type(head) is str:  # why it is none
            self.refuse(1002, head)
            return None
        if head.hello:
            if self.greeted:
                self.refuse(1002, "a second hello")
                return None
            self.greeted = True
            self.arriving().positions = head.pos
            self.engine.admission.greeted(self)
            return content[at + 1:] if at + 1 < len(content) else None
        if not self.greeted:
            self.refuse(1002, "the first message of wsc.1 is no hello")
            return None
        if at + 1 < len(content):
            return content[at + 1:]
        # A head alone says something to the hub, and nothing to the application.
        if not self.engine.rates.bounded or self.within_rate(size):
            self.count_message(size)
        return None

    cdef object call_handler(self, object handler, object content):
        cdef object context = self.enter_context()
        try:
            return handler(self, content)
        finally:
            PyContext_Exit(context)

    # --- its end ---

    cdef int forget(self) except -1:
        self.inbox = None
        self.variables = None
        self.gathered = None
        return PingedConnection.forget(self)
