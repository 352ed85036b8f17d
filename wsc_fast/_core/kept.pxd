"""The sends of a kept room (bus/base.py): to its members, or to one of them.

Clients that speak wsc.1 get each message with a head line that names the room and the position;
all others get the very bytes that they would get of any room.
"""

from wsc_fast._core.engine cimport Engine
from wsc_fast._core.members cimport KeptRoom

cdef bytes head_of(str room_id, str position, str more)
cdef int count_given(Engine engine, Py_ssize_t size) except -1
