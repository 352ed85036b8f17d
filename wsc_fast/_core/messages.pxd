"""HubMessages on their way out, checked and encoded in one call; what else messages.py has for us.

Both objects are made once, by messages.py, and handed down, since no compiled module imports it.

Ownership: the encoder owns one buffer, which a call takes away while it fills it. A frame or text
belongs to the caller.
"""

cdef class HubMessageEncoder:
    cdef:
        object HubMessage
        object Priority
        object datetime
        object utc
        object encode_into         # msgspec's
        object mended              # makes a message that is right, though unusual, a plain one
        object check_data
        bytearray buffer           # of the last message; None while it is in use
        Py_ssize_t longest_id      # characters
        Py_ssize_t[10] offsets     # of the fields in a HubMessage, in the order of FIELDS

    cdef object slot(self, object message, int field)
    cdef bint is_plain(self, object message) except -1
    cdef bytearray fill(self, object message)
    cdef int give_back(self, bytearray buffer) except -1
    cdef bytes encode_frame(self, object message)
    cpdef bytes encode(self, object message)

cdef class MessageForms:
    cdef:
        HubMessageEncoder encoder
        object ACKMessage
        # Functions of messages.py, under these names.
        object decode_acknowledgement
        object decode_hub_message
        object is_same_message
        object to_ack_message
        object to_hub_message
        tuple no_acknowledgement   # exceptions of decode_acknowledgement for any other text
        # AckStatus
        object pending
        object confirmed
        object failed
        object timeout
        object dropped
