"""What is checked of each HubMessage before it is encoded, for every send: in C, as it would take
longer than the encoding. What is wrong with a message is said by wsc_fast/messages.py.
"""

from cpython.long cimport PyLong_CheckExact
from cpython.unicode cimport PyUnicode_CheckExact, PyUnicode_GET_LENGTH

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1


def is_plain(
    tuple fields not None, Py_ssize_t longest_id, object Priority, object datetime, object utc
):
    """Whether the fields of a HubMessage are what goes on the wire as it is.

    Args:
        fields: in the order of HubMessage; `data` is not looked at.
        longest_id: in characters.
        Priority, datetime, utc: as in messages.py.

    Returns:
        bool: False also for what is right though unusual, such as a plain int for a Priority.
    """
    cdef int overflow = 0
    (
        message_id, kind, from_, to, content, _, create_at, seq_no, priority, require_ack
    ) = fields
    if not (
        PyUnicode_CheckExact(message_id)
        and 0 < PyUnicode_GET_LENGTH(message_id) <= longest_id
        and PyUnicode_CheckExact(kind)
        and PyUnicode_CheckExact(from_)
        and PyUnicode_CheckExact(to)
        and PyUnicode_CheckExact(content)
        and type(create_at) is datetime
        and create_at.tzinfo is utc
        and PyLong_CheckExact(seq_no)
        and type(priority) is Priority
        and (require_ack is True or require_ack is False)
    ):
        return False
    PyLong_AsLongLongAndOverflow(seq_no, &overflow)
    return overflow == 0
