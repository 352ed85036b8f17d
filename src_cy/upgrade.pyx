"""The common upgrade, from its bytes to its 101; see upgrade.pxd."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcmp, memcpy

from wsc_fast._core.picows_connection cimport PicowsConnection

from wsc_fast._core.connection import agree_on
from wsc_fast._core.handshake import RequestHead

cdef extern from "http.h" nogil:
    struct wsc_span:
        const uint8_t* at
        size_t size

    struct common "wsc_upgrade":
        wsc_span path
        wsc_span query
        wsc_span host
        wsc_span origin
        wsc_span key
        wsc_span protocols
        wsc_span extensions
        size_t size
        size_t fields
        uint8_t forwarded

    bint wsc_read_upgrade(common* found, const uint8_t* data, size_t size)
    bint wsc_query_has(const uint8_t* data, size_t size, const void* parameter, size_t length)

cdef extern from "accept_key.h" nogil:
    enum:
        WSC_ACCEPT_SIZE

    void wsc_accept_key(const uint8_t* key, char* out)

cdef enum:
    # Verdicts of each kind that are kept: anybody may send another host.
    MOST_VERDICTS = 256
    # Bytes of a verdict's key, and of the lines of a 101 that say what was agreed on.
    LONGEST = 1024

cdef char* BEGINNING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: "
)
cdef Py_ssize_t BEGINNING_SIZE = len(BEGINNING)


cdef Py_ssize_t put(char* out, Py_ssize_t at, const void* data, Py_ssize_t size) noexcept:
    memcpy(out + at, data, size)
    return at + size


cdef bytes joined(const wsc_span* one, const wsc_span* other, bint mark):
    """Both values, and which of them there are, as the key of a verdict; None: they are too long.

    A value holds no line end, so that no other two make the same key.
    """
    cdef char[LONGEST + 8] text
    cdef Py_ssize_t at = 1
    if one.size + other.size > LONGEST:
        return None
    text[0] = (one.at != NULL) | (other.at != NULL) << 1 | mark << 2
    if one.at != NULL:
        at = put(text, at, one.at, one.size)
    at = put(text, at, b"\n", 1)
    if other.at != NULL:
        at = put(text, at, other.at, other.size)
    return PyBytes_FromStringAndSize(text, at)


cdef str text_of(const wsc_span* span):
    return None if span.at == NULL else (<bytes>span.at[:span.size]).decode("latin-1")


cdef int keep(dict verdicts, bytes key, object verdict) except -1:
    if len(verdicts) >= MOST_VERDICTS:
        verdicts.clear()
    verdicts[key] = verdict
    return 0


@cython.final
cdef class CommonUpgrade(Answerer):
    """Answers common upgrades (internal).

    Args:
        engine: of the hub.
        policy: an `upward.Upgrades`.
        requests: an `upward.Requests`, with `settle`.
        state: whose `accepting` and `draining` say whether new clients are let in.
        files: whose `last` is the highest descriptor that the process may have.
        settings: gives the settings that hold now: another object once they have changed.
        outlasting: a set, each of which counts as a connection.
        path: of the endpoint.
        in_query: the parameter, NAME=VALUE, by which a client says that it speaks wsc.1.

    Attributes:
        accepted: upgrades that were accepted here.

    Thread-safety: the loop's thread.
    """

    def __cinit__(
        self, Engine engine not None, policy, requests, state, files, settings, outlasting,
        str path not None, bytes in_query not None,
    ):
        self.engine = engine
        self.policy = policy
        self.requests = requests
        self.state = state
        self.files = files
        self.settings = settings
        self.outlasting = outlasting
        self.path = path.encode()
        self.in_query = in_query
        self.pages = {}
        self.offers = {}

    cdef int take_settings(self) except -1:
        cdef object config = self.settings()
        if config is self.config:
            return 0
        self.most_bytes = config.max_header_bytes
        self.most_fields = config.max_headers
        self.most_connections = config.max_connections
        self.trusts = bool(config.trusted_proxies)
        self.counts = bool(
            config.max_connections_per_address
            or config.connection_rate or config.connection_rate_per_address
        )
        self.pages = {}
        self.offers = {}
        self.config = config
        return 0

    cdef bint accept(
        self, Stream stream, Receiver client, const uint8_t* data, Py_ssize_t size
    ) except -1:
        cdef common asked
        cdef object agreed
        cdef bytes head = None
        cdef bytes lines
        cdef str address
        cdef char[512 + LONGEST] answer
        cdef Py_ssize_t length
        if not self.is_open(stream, client) or not wsc_read_upgrade(&asked, data, size):
            return False
        if not self.is_sound(<wsc_upgrade*>&asked, size):
            return False
        agreed = self.agreement(<wsc_upgrade*>&asked)
        if agreed is None:
            return False
        # All that is needed of the request, before anybody is called who may run a loop.
        length = put(answer, 0, BEGINNING, BEGINNING_SIZE)
        wsc_accept_key(asked.key.at, answer + length)
        length = put(answer, length + WSC_ACCEPT_SIZE, b"\r\n", 2)
        address = stream.address()
        if self.counts or self.policy.asks_each:
            head = PyBytes_FromStringAndSize(<const char*>data, size - 2)
            if not self.let_in(stream, client, head, address):
                return True
        lines, subprotocol, deflate, aware = agreed
        length = put(answer, length, PyBytes_AS_STRING(lines), PyBytes_GET_SIZE(lines))
        length = put(answer, length, b"\r\n", 2)
        try:
            if subprotocol is not None or deflate is not None or aware:
                agree_on(client, subprotocol, deflate, aware)
            if aware:
                self.policy.await_hello(client)
            if client.handshake is not None:
                self.requests.settle(client.handshake)
            stream.send_answer(answer, length)
        except BaseException:
            self.policy.drop_identity(client)
            raise
        self.accepted += 1
        (<PicowsConnection>client).begin(stream, stream.descriptor, False, address)
        return True

    cdef bint is_open(self, Stream stream, Receiver client) except -1:
        """Whether the hub lets clients in that the policy has nothing against."""
        if client.handshake is not None and not client.handshake.untouched:
            return False
        if not self.state.accepting or self.state.draining or client.input_closed:
            return False
        self.take_settings()
        return (
            self.engine.connections + len(self.outlasting) < self.most_connections
            and stream.descriptor < self.files.last
        )

    cdef bint is_sound(self, const wsc_upgrade* request, Py_ssize_t size) except -1:
        """Whether the policy would accept it, but for what it has agreed on."""
        cdef const common* asked = <const common*>request
        return (
            <Py_ssize_t>asked.size == size and size <= self.most_bytes
            and <Py_ssize_t>asked.fields <= self.most_fields
            and not (self.trusts and asked.forwarded)
            and <Py_ssize_t>asked.path.size == PyBytes_GET_SIZE(self.path)
            and memcmp(asked.path.at, PyBytes_AS_STRING(self.path), asked.path.size) == 0
            and self.allows_page(request)
        )

    cdef bint allows_page(self, const wsc_upgrade* request) except -1:
        cdef const common* asked = <const common*>request
        cdef bytes key = joined(&asked.host, &asked.origin, False)
        cdef object allowed
        if key is None:
            return False
        allowed = self.pages.get(key)
        if allowed is None:
            allowed = self.policy.allows_page(text_of(&asked.host), text_of(&asked.origin))
            keep(self.pages, key, allowed)
        return allowed

    cdef object agreement(self, const wsc_upgrade* request):
        """The result of `Upgrades.agreement`; None where that is not common."""
        cdef const common* asked = <const common*>request
        cdef bint in_query = asked.query.at != NULL and wsc_query_has(
            asked.query.at, asked.query.size,
            PyBytes_AS_STRING(self.in_query), PyBytes_GET_SIZE(self.in_query),
        )
        cdef bytes key = joined(&asked.protocols, &asked.extensions, in_query)
        cdef tuple agreed
        if key is None:
            return None
        agreed = self.offers.get(key)
        if agreed is None:
            agreed = self.policy.agreement(
                text_of(&asked.protocols), text_of(&asked.extensions), in_query
            )
            keep(self.offers, key, agreed)
        return agreed if PyBytes_GET_SIZE(<bytes>agreed[0]) <= LONGEST else None

    cdef bint let_in(self, Stream stream, Receiver client, bytes head, str address) except -1:
        cdef object refused
        if client.handshake is not None:
            client.handshake.untouched = False  # a loop in a call may bring more of it
        refused = self.policy.let_in(RequestHead(head, self.most_fields), client, address, stream)
        if stream.closing:
            # A loop ran inside the call, and the connection ended in it.
            self.policy.drop_identity(client)
            return False
        if refused is None:
            return True
        if client.handshake is None:
            (<object>client).connection_made(stream)
        if client.handshake is not None:
            client.handshake.answer(refused)
        return False
