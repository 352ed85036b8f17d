"""Envelopes of a bus and the entries in them, as bytes; wsc_fast/bus/base.py has the format.

    pack_entry       a message that this hub publishes
    pack_envelope    entries with their positions: for buses whose server makes none itself
    read_envelope    an envelope that has come: each message as a frame
    open_entry       an entry out of a history, likewise

Nothing here trusts the bytes: each size is checked against what is there, and texts must be UTF-8.
"""

cdef list plain_entries(bytes data, bytes own)
cdef tuple read_entry(const char* data, Py_ssize_t size, Py_ssize_t* used, bint is_kept)
