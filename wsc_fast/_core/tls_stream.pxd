"""One TLS connection over a socket of the engine's own: a Stream that encrypts and decrypts.

    shake     the handshake goes on, by Python's `ssl` on the socket, when its turn has come
    serve     it is done: from here on the protocol hears of the connection, as of any Stream
    read      one read, decrypted whole into the buffer that all connections share
    write     encrypted, a bounded number of bytes at a time, and to the kernel
    close     what waits goes out, then our goodbye (close_notify); the peer's is waited for, until
              `close_timeout` after the call, and what comes meanwhile is read and forgotten

The flush sends through `layer_of` without Python and without the GIL (tls.h), as it does to a plain
descriptor. The bytes that TLS keeps of that count as bytes that wait here (`waiting_bytes`).

The peer's goodbye ends its half of the stream, which is heard, and then ours. An end of TCP without
one is a connection that broke, and is not heard as the end of a message.

Ownership: it owns its descriptor, and its `wsc_tls`, which the flush borrows (`Fanout.set_layer`)
for as long as a client has its `fd`. The Python object owns the SSL, and may live longer where the
application has it.
"""

from wsc_fast._core.fanout cimport wsc_layer
from wsc_fast._core.memory cimport flag
from wsc_fast._core.stream cimport Stream


cdef class TLSStream(Stream):
    cdef:
        object ssl_object       # ssl.SSLObject
        object arrived          # called when the handshake may go on; None once it is done
        void* tls               # a wsc_tls of tls.h
        long long close_slot    # of `Engine.deadlines`, once it closes; else -1
        flag parted             # our goodbye is said

    # Gives the kernel what TLS keeps, as far as it takes it.
    cdef int push(self) except -1
    cdef int read_to_end(self) except -1
    cdef object broken_by(self)


# The layer of a transport; NULL: it has none.
cdef wsc_layer* layer_of(object stream) noexcept
