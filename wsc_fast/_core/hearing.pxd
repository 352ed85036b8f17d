"""From a message of the peer to the application's callback.

    take_message    one whole message. In this order: its head line of wsc.1, the wait for an
                    identity, the acknowledgements, the rates, the count, `authorize_publish`, the
                    callback. An async callback of the client is awaited by its inbox; while there
                    is one, the message waits there
    gather          with `on_messages_received`: the messages of one read are heard as one list
    take_head       the head line, and the hello of a client that speaks wsc.1
    enter_context   what each callback of the client is called in

All callbacks of a client run in one contextvars.Context, and nothing else does: plain ones are
called in it, and the task of its Inbox runs in it. A context that is entered cannot be entered
again, by a loop inside a callback for one: a copy then does.
"""

from wsc_fast._core.pings cimport PingedConnection


cdef class HeardConnection(PingedConnection):
    cdef:
        object variables           # contextvars.Context of its callbacks; None before the first
        object inbox               # callbacks.Inbox while an async callback of it is due
        unsigned long long messages_in
        unsigned long long bytes_in

    # Makes its context the current one; returns what PyContext_Exit is to leave.
    cdef object enter_context(self)
    cdef int gather(self, object content, Py_ssize_t size) except -1
    cdef list allowed(self, list messages)
    cdef object take_head(self, object content, Py_ssize_t size)
    cdef object call_handler(self, object handler, object content)

    cdef inline void count_message(self, Py_ssize_t size) noexcept:
        self.engine.counters.messages_in += 1
        self.engine.counters.bytes_in += size
        self.messages_in += 1
        self.bytes_in += size
