"""The epoll descriptor of a hub; see poller.pxd."""

import asyncio
import os

from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.mem cimport PyMem_Free
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t

from wsc_fast._core.engine cimport Engine
from wsc_fast._core.memory cimport A_POLLER, allocate, born, died

cdef extern from "accepting.h" nogil:
    ctypedef struct wsc_event:
        pass

    int wsc_poll_open()
    int wsc_poll_watch(int poll, int fd, uint32_t before, uint32_t events)
    int wsc_poll_take(int poll, wsc_event* events, int most)
    int wsc_event_descriptor(const wsc_event* event)
    uint32_t wsc_event_kinds(const wsc_event* event)
    void wsc_close(int fd)

cdef extern from "net.h" nogil:
    double wsc_now()

cdef enum:
    # Events that the kernel tells of at once.
    MOST_EVENTS = 256
    # The clock is read once in this many events, and behind each that is `dear`.
    CLOCK_EVERY = 4


cdef class Watched:
    """A descriptor that a Poller watches (internal)."""

    cdef int watch(self, uint32_t events) except -1:
        cdef int result
        if events == self.watched or self.descriptor < 0:
            return 0
        result = wsc_poll_watch(self.poller.poll, self.descriptor, self.watched, events)
        if result < 0 and events:
            raise OSError(-result, os.strerror(-result))
        self.watched = events
        return 0

    cdef int ready(self, uint32_t events) except -1:
        return 0

    cdef int failed(self, object error) except -1:
        return 0

    cdef int end(self) except -1:
        return 0

    cdef int drop(self) except -1:
        return 0


cdef class Poller:
    """The connections of a hub that are accepted, read and written here (internal).

    Args:
        engine: of the hub, attached to the running loop.
        answerer: answers the first bytes of a connection where it can; None: nobody does.

    Attributes:
        answerer: the same.
        budget: seconds that one turn of the loop gives to events, and to ends.

    Raises:
        OSError: there is no descriptor left.
        MemoryError: there is no memory.
    """

    def __cinit__(self, Engine engine not None, answerer=None):
        born(A_POLLER)
        self.poll = -1
        self.budget = 0.003
        self.engine = engine
        self.answerer = answerer
        self.loop = engine.loop_context.loop
        self.places = []
        # asyncio enters the context of a reader, and could not enter it in a loop inside a
        # callback. uvloop does not run inside itself.
        self.anew = isinstance(self.loop, asyncio.BaseEventLoop)
        self.events = allocate(MOST_EVENTS * sizeof(wsc_event))
        if self.events == NULL:
            raise MemoryError("no memory for the events of a hub")
        self.poll = wsc_poll_open()
        if self.poll < 0:
            raise OSError(-self.poll, os.strerror(-self.poll))
        self.callback = self.run
        self.loop.add_reader(self.poll, self.callback)

    def __dealloc__(self):
        died(A_POLLER)
        PyMem_Free(self.events)
        if self.poll >= 0:
            wsc_close(self.poll)

    def descriptors(self):
        """All that are open: of the epoll, and of the sockets.

        Thread-safety: the loop's thread.
        """
        cdef Watched watched
        if self.poll < 0:
            return []
        return [self.poll] + [
            watched.descriptor for watched in self.places if watched is not None
        ]

    def run(self):
        """Tells some of those that are ready; the loop calls it.

        Thread-safety: the loop's thread.
        """
        cdef wsc_event* event
        cdef Watched watched
        cdef int descriptor
        cdef unsigned int told = 0
        if self.poll < 0:
            return
        if self.anew:
            self.loop.add_reader(self.poll, self.callback)
        self.call_losses()  # there may have been no memory for it
        self.deadline = wsc_now() + self.budget
        if self.at >= self.count:
            self.at = 0
            self.count = wsc_poll_take(self.poll, <wsc_event*>self.events, MOST_EVENTS)
        while self.at < self.count:
            event = <wsc_event*>self.events + self.at
            self.at += 1
            descriptor = wsc_event_descriptor(event)
            if (
                descriptor >= PyList_GET_SIZE(self.places)
                or PyList_GET_ITEM(self.places, descriptor) == <PyObject*>None
            ):
                continue  # it has ended since
            watched = <Watched>PyList_GET_ITEM(self.places, descriptor)
            self.dear = False
            try:
                watched.ready(wsc_event_kinds(event))
            except BaseException as error:
                watched.failed(error)
                if not isinstance(error, Exception):
                    raise
            told += 1
            if (told % CLOCK_EVERY == 0 or self.dear) and self.is_late():
                return

    def run_losses(self):
        """Ends some of those that are to end; the loop calls it.

        Thread-safety: the loop's thread.
        """
        cdef double deadline = wsc_now() + self.budget
        self.losing = False
        try:
            while self.first_lost is not None:
                self.end_next()
                if wsc_now() > deadline:
                    break
        finally:
            self.call_losses()

    def finish(self):
        """Ends all that are left, at once, and closes the epoll descriptor.

        Thread-safety: the loop's thread.
        """
        cdef Watched watched
        for watched in [each for each in self.places if each is not None]:
            watched.failed(None)
        while self.first_lost is not None:
            self.end_next()
        if self.poll >= 0:
            self.loop.remove_reader(self.poll)
        self.drop_all()

    def forget(self):
        """Closes all descriptors: the loop is closed, or this is the child of a fork.

        Thread-safety: the loop's thread, or that of the child.
        """
        self.drop_all()

    cdef int drop_all(self) except -1:
        cdef Watched watched
        for watched in [each for each in self.places if each is not None]:
            watched.drop()
        self.places = []
        self.first_lost = self.last_lost = None
        self.at = self.count = 0
        if self.poll >= 0:
            wsc_close(self.poll)
            self.poll = -1
        self.callback = self.answerer = None
        return 0

    cdef int add(self, Watched watched) except -1:
        cdef Py_ssize_t missing = watched.descriptor + 1 - PyList_GET_SIZE(self.places)
        if missing > 0:
            self.places.extend([None] * (missing + (PyList_GET_SIZE(self.places) >> 1)))
        self.places[watched.descriptor] = watched
        return 0

    cdef int remove(self, Watched watched) except -1:
        if watched.descriptor < PyList_GET_SIZE(self.places):
            self.places[watched.descriptor] = None
        return 0

    cdef int lose(self, Watched watched) except -1:
        if self.first_lost is None:
            self.first_lost = watched
        else:
            self.last_lost.next_lost = watched
        self.last_lost = watched
        return self.call_losses()

    cdef int end_next(self) except -1:
        cdef Watched watched = self.first_lost
        self.first_lost = watched.next_lost
        watched.next_lost = None
        if self.first_lost is None:
            self.last_lost = None
        return watched.end()

    cdef int call_losses(self) except -1:
        if self.first_lost is not None and not self.losing:
            self.engine.loop_context.call_soon(self.run_losses)
            self.losing = True
        return 0

    cdef int report(self, object error) except -1:
        self.engine.application.report(None, error)
        return 0

    cdef bint is_late(self) noexcept:
        return wsc_now() > self.deadline
