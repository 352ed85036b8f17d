"""HubMessage -> JSON: what is checked of each message is checked in C, where it would otherwise take
longer than the encoding (which is msgspec's).

The fields are read where msgspec keeps them, in the slots of the struct: their places are taken
from the member descriptors of the class, once.
"""

from cpython.long cimport PyLong_CheckExact
from cpython.object cimport PyObject, PyTypeObject
from cpython.unicode cimport PyUnicode_CheckExact, PyUnicode_GET_LENGTH

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

cdef tuple FIELDS = (
    "id", "type", "from_", "to", "content", "data", "create_at", "seq_no", "priority", "require_ack"
)


cdef class HubMessageEncoder:
    """See messages.pxd. The arguments are what messages.py has under these names; `encode` is
    msgspec's, `mended` and `check_data` raise ValidationError."""

    def __init__(self, HubMessage, Priority, datetime, utc, longest_id, encode, mended, check_data):
        cdef object descriptor
        cdef int i
        self.HubMessage = HubMessage
        self.Priority = Priority
        self.datetime = datetime
        self.utc = utc
        self.longest_id = longest_id
        self.json = encode
        self.mended = mended
        self.check_data = check_data
        for i, name in enumerate(FIELDS):
            descriptor = HubMessage.__dict__[name]
            if not PyObject_TypeCheck(descriptor, &PyMemberDescr_Type):
                raise TypeError(f"HubMessage.{name} is a {type(descriptor).__name__}, not a slot")
            self.offsets[i] = (<PyMemberDescrObject*>descriptor).d_member.offset

    cdef object slot(self, object message, int field):
        """One field, borrowed for the caller; None for one that was deleted."""
        cdef PyObject* value = (<PyObject**>(<char*><PyObject*>message + self.offsets[field]))[0]
        return None if value == NULL else <object>value

    cdef bint is_plain(self, object message) except -1:
        """Whether the fields are what goes on the wire as it is; not of what is right though
        unusual, such as a plain int for a Priority. `data` is not looked at."""
        cdef int overflow = 0
        cdef int i
        cdef object value = self.slot(message, 0)
        if not PyUnicode_CheckExact(value) or not 0 < PyUnicode_GET_LENGTH(value) <= self.longest_id:
            return False
        for i in range(1, 5):
            if not PyUnicode_CheckExact(self.slot(message, i)):
                return False
        value = self.slot(message, 6)
        if type(value) is not self.datetime or value.tzinfo is not self.utc:
            return False
        if type(self.slot(message, 8)) is not self.Priority:
            return False
        value = self.slot(message, 9)
        if value is not True and value is not False:
            return False
        value = self.slot(message, 7)
        if not PyLong_CheckExact(value):
            return False
        PyLong_AsLongLongAndOverflow(value, &overflow)
        return overflow == 0

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
        cdef object data
        if type(message) is not self.HubMessage or not self.is_plain(message):
            message = self.mended(message)
        data = self.slot(message, 5)
        if data is not None:
            self.check_data(data)
        try:
            return self.json(message)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValidationError(f"a HubMessage that JSON cannot carry: {error}") from error
