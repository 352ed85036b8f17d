"""The common upgrade of plain TCP: from the bytes of its request to its 101.

It only ever accepts. A request that is common and surely sound is answered here: all in one read,
with the endpoint's path, for a host and from a page that the policy allows, with offers on which
the policy has agreed. All that is in any way unusual or to be refused goes to `Requests` from its
first byte, so that refusals, their lines and their counters have one place.

    settings   the numbers in them are copied when they change; then all verdicts are forgotten
    verdicts   the policy is asked once for each pair of host and page, and for each set of offers,
               a bounded number of which is kept
    let_in     the policy is asked each time where a limit counts connections, or the application
               (`authenticate`, traces) wants to hear of each

Ownership: what it keeps is the hub's. Nothing of a request is kept but its part of a verdict's key.
The bytes of a request belong to the read buffer, so that they are done with before any call into
Python that may run a loop.
"""

cimport cython
from libc.stdint cimport uint8_t

from wsc_fast._core.engine cimport Engine
from wsc_fast._core.receiver cimport Receiver
from wsc_fast._core.stream cimport Answerer, Stream

# Of http.h, which is not installed: a module that cimports this has pointers to it only.
cdef extern from *:
    """
    struct wsc_upgrade;
    """
    struct wsc_upgrade:
        pass


@cython.final
cdef class CommonUpgrade(Answerer):
    cdef:
        Engine engine
        object policy            # upward.Upgrades
        object requests          # of the hub: those of its connections that are not upgraded
        object state             # runtime.state.State
        object files             # its `last` is the highest descriptor
        object settings          # gives the HubConfig that holds now
        object outlasting        # a set: what counts as connections besides those of the engine
        bytes path               # of the endpoint
        bytes in_query           # the parameter by which a client says that it speaks wsc.1
        object config            # the HubConfig whose numbers these are
        Py_ssize_t most_bytes
        Py_ssize_t most_fields
        Py_ssize_t most_connections
        bint trusts              # proxies say who has asked
        bint counts              # a limit counts connections by address, or by second
        dict pages               # host, and origin if there is one -> whether the policy allows it
        dict offers              # what a client offers -> `Upgrades.agreement`
        readonly unsigned long long accepted

    cdef int take_settings(self) except -1
    cdef bint is_open(self, Stream stream, Receiver client) except -1
    cdef bint is_sound(self, const wsc_upgrade* asked, Py_ssize_t size) except -1
    cdef bint allows_page(self, const wsc_upgrade* asked) except -1
    cdef object agreement(self, const wsc_upgrade* asked)
    # Asks the policy about this one connection: whether it is accepted. Else it is answered.
    cdef bint let_in(self, Stream stream, Receiver client, bytes head, str address) except -1
