"""One listening socket; see entrance.pxd."""

from libc.errno cimport EAGAIN, ECONNABORTED, EMFILE, ENFILE, ENOBUFS, ENOMEM
from libc.math cimport INFINITY
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from wsc_fast._core.poller cimport Poller, Watched
from wsc_fast._core.receiver cimport Receiver
from wsc_fast._core.stream cimport Stream

cdef extern from "accepting.h" nogil:
    struct wsc_address:
        pass

    enum:
        WSC_READ

    int wsc_accept(int listening, wsc_address* peer)
    void wsc_close(int fd)

cdef extern from "net.h" nogil:
    double wsc_now()

cdef enum:
    # Connections that are accepted in one event.
    AT_ONCE = 64


cdef class Entrance(Watched):
    """A listening socket whose connections are the Poller's (internal).

    Args:
        poller: of the hub.
        descriptor: of the socket, which listens and does not block.
        make_connection: makes the Client of each connection.
        out_of_files: is called where no descriptor is left for a connection; returns whether one
            was refused in another way. Else accepting pauses until `resume`.

    Raises:
        OSError: the kernel cannot watch it.
    """

    def __cinit__(self, Poller poller not None, int descriptor, make_connection, out_of_files):
        self.poller = poller
        self.descriptor = descriptor
        self.make_connection = make_connection
        self.out_of_files = out_of_files
        poller.add(self)
        self.watch(WSC_READ)

    def accept_all(self, int most):
        """Accepts all who have connected by now, but no more than this.

        Nobody answers their requests at once: each has its turn, as a heavy read has.

        Thread-safety: the loop's thread.
        """
        cdef object answerer = self.poller.answerer
        self.poller.answerer = None
        try:
            self.accept_some(most, INFINITY)
        finally:
            if self.poller.poll >= 0:
                self.poller.answerer = answerer

    def resume(self):
        """Accepts again.

        Thread-safety: the loop's thread.
        """
        self.watch(WSC_READ)

    def close(self):
        """Accepts nothing more; to be called before the socket is closed.

        Thread-safety: the loop's thread.
        """
        if self.descriptor >= 0:
            self.watch(0)
            self.poller.remove(self)
        self.drop()

    cdef int ready(self, uint32_t events) except -1:
        self.accept_some(AT_ONCE, self.poller.deadline)
        self.poller.dear = True  # the first bytes of each were read, too
        return 0

    cdef bint accept_some(self, int most, double deadline) except -1:
        cdef wsc_address peer
        cdef int accepted = 0
        cdef int descriptor
        while accepted < most and self.descriptor >= 0:
            descriptor = wsc_accept(self.descriptor, &peer)
            if descriptor >= 0:
                self.admit(descriptor, &peer)
            elif descriptor == -EAGAIN or descriptor == -ECONNABORTED:
                return False
            elif descriptor in (-EMFILE, -ENFILE, -ENOBUFS, -ENOMEM):
                if not self.out_of_files():
                    self.watch(0)  # it stays readable: the loop would do nothing else
                    return False
            # Other errors are of the one connection (accept(2), "Error handling").
            accepted += 1
            if wsc_now() > deadline:
                break
        return self.descriptor >= 0

    cdef int admit(self, int descriptor, const void* peer) except -1:
        cdef Stream stream
        cdef Receiver protocol
        try:
            stream = Stream.__new__(Stream)
        except BaseException:
            wsc_close(descriptor)
            raise
        stream.descriptor = descriptor
        stream.poller = self.poller
        memcpy(stream.peer, peer, sizeof(wsc_address))
        protocol = self.make_connection()
        try:
            stream.begin(protocol)
        except BaseException as error:
            stream.failed(error)
            if not isinstance(error, Exception):
                raise
        return 0

    cdef int failed(self, object error) except -1:
        if error is not None:
            self.poller.report(error)
        return 0

    cdef int drop(self) except -1:
        self.descriptor = -1
        self.make_connection = self.out_of_files = None
        return 0
