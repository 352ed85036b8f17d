"""HubMessage -> JSON: what is checked of each message is checked in C, as it would otherwise take
longer than the encoding, which is msgspec's.

The fields are read where msgspec keeps them, in the slots of the struct: their places are taken
from the member descriptors of the class, once.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.long cimport PyLong_CheckExact
from cpython.object cimport PyObject, PyTypeObject
from cpython.unicode cimport PyUnicode_CheckExact, PyUnicode_GET_LENGTH

from wsc_fast._core cimport frames

from wsc_fast.errors import ValidationError

cdef extern from "structmember.h":
    ctypedef struct PyMemberDef:
        Py_ssize_t offset

cdef extern from "Python.h":
    ctypedef struct PyMemberDescrObject:
        PyMemberDef* d_member
    PyTypeObject PyMemberDescr_Type
    bint PyObject_TypeCheck(object, PyTypeObject*)
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1

# The largest buffer that is kept for the next message, in bytes.
cdef Py_ssize_t BUFFER_MAX = 1 << 16

cdef tuple FIELDS = (
    "id", "type", "from_", "to", "content",
    "data", "create_at", "seq_no", "priority", "require_ack",
)

cdef enum:
    ID = 0
    CONTENT = 4  # the last of those that are a str
    DATA = 5
    CREATE_AT = 6
    SEQ_NO = 7
    PRIORITY = 8
    REQUIRE_ACK = 9


cdef class HubMessageEncoder:
    """See messages.pxd. The arguments are what messages.py has under these names; `mended` and
    `check_data` raise ValidationError."""

    def __init__(
        self, HubMessage, Priority, datetime, utc, longest_id, encode_into, mended, check_data
    ):
        cdef object descriptor
        cdef int i
        self.HubMessage = HubMessage
        self.Priority = Priority
        self.datetime = datetime
        self.utc = utc
        self.longest_id = longest_id
        self.encode_into = encode_into
        self.mended = mended
        self.check_data = check_data
        for i, name in enumerate(FIELDS):
            descriptor = HubMessage.__dict__[name]
            if not PyObject_TypeCheck(descriptor, &PyMemberDescr_Type):
                raise TypeError(f"HubMessage.{name} is a {type(descriptor).__name__}, not a slot")
            self.offsets[i] = (<PyMemberDescrObject*>descriptor).d_member.offset

    cdef object slot(self, object message, int field):
        """One field; None for one that was deleted."""
        cdef PyObject* value = (<PyObject**>(<char*><PyObject*>message + self.offsets[field]))[0]
        return None if value == NULL else <object>value

    cdef bint is_plain(self, object message) except -1:
        """Whether the fields are what goes on the wire as it is; not of what is right though
        unusual, such as a plain int for a Priority. `data` is not looked at."""
        cdef int overflow = 0
        cdef int i
        cdef object value = self.slot(message, ID)
        if not (
            PyUnicode_CheckExact(value) and 0 < PyUnicode_GET_LENGTH(value) <= self.longest_id
        ):
            return False
        for i in range(ID + 1, CONTENT + 1):
            if not PyUnicode_CheckExact(self.slot(message, i)):
                return False
        value = self.slot(message, CREATE_AT)
        if type(value) is not self.datetime or value.tzinfo is not self.utc:
            return False
        if type(self.slot(message, PRIORITY)) is not self.Priority:
            return False
        value = self.slot(message, REQUIRE_ACK)
        if value is not True and value is not False:
            return False
        value = self.slot(message, SEQ_NO)
        if not PyLong_CheckExact(value):
            return False
        PyLong_AsLongLongAndOverflow(value, &overflow)
        return overflow == 0

    cdef bytearray fill(self, object message):
        """A buffer with the message's JSON, the caller's until `give_back`."""
        cdef object data
        # Taken away while it is in use: encoding may run code of the application's, and other
        # threads.
        cdef bytearray buffer = self.buffer
        self.buffer = None
        if buffer is None:
            buffer = bytearray()
        if type(message) is not self.HubMessage or not self.is_plain(message):
            message = self.mended(message)
        data = self.slot(message, DATA)
        if data is not None:
            self.check_data(data)
        try:
            self.encode_into(message, buffer)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValidationError(f"a HubMessage that JSON cannot carry: {error}") from error
        return buffer

    cdef int give_back(self, bytearray buffer) except -1:
        if PyByteArray_GET_SIZE(buffer) <= BUFFER_MAX:
            self.buffer = buffer
        return 0

    cdef bytes encode_frame(self, object message):
        """The message as a text frame."""
        cdef bytearray buffer = self.fill(message)
        cdef bytes frame = frames.encode(
            frames.FIN_TEXT, PyByteArray_AS_STRING(buffer), PyByteArray_GET_SIZE(buffer)
        )
        self.give_back(buffer)
        return frame

    cpdef bytes encode(self, object message):
        """The message as it goes on the wire.

        Args:
            message: a HubMessage.

        Returns:
            bytes: UTF-8 JSON.

        Raises:
            ValidationError: a field cannot be sent; the text names it and what was expected.

        Thread-safety: any thread.
        """
        cdef bytearray buffer = self.fill(message)
        cdef bytes text = PyBytes_FromStringAndSize(
            PyByteArray_AS_STRING(buffer), PyByteArray_GET_SIZE(buffer)
        )
        self.give_back(buffer)
        return text


cdef class MessageForms:
    """See messages.pxd. The arguments are what messages.py has under these names."""

    def __init__(
        self, HubMessageEncoder encoder not None, ACKMessage, AckStatus, *, decode_acknowledgement,
        decode_hub_message, is_same_message, to_ack_message, to_hub_message, no_acknowledgement,
    ):
        self.encoder = encoder
        self.ACKMessage = ACKMessage
        self.decode_acknowledgement = decode_acknowledgement
        self.decode_hub_message = decode_hub_message
        self.is_same_message = is_same_message
        self.to_ack_message = to_ack_message
        self.to_hub_message = to_hub_message
        self.no_acknowledgement = no_acknowledgement
        self.pending = AckStatus.PENDING
        self.confirmed = AckStatus.CONFIRMED
        self.failed = AckStatus.FAILED
        self.timeout = AckStatus.TIMEOUT
        self.dropped = AckStatus.DROPPED
