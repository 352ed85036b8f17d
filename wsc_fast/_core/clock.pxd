"""The clocks by which a hub tells how much time has passed, for its peers and for what it keeps.

Tests set them ahead (`wsc_fast.testing.Clock`), and the clock of the loop with them, so that
heartbeats, rates and lifetimes pass without waiting. Compiled code reads the machine's clock, and
adds `passed`: a read costs that addition. Budgets, by which a turn of the loop ends, are read from
the machine's clock alone, since no test sets the clocks ahead within a turn.
"""

# Seconds that a test has let pass; 0 in a program that serves. One for the process.
cdef double passed

# Seconds since something of which the kernel tells, on these clocks; infinite where it was before
# the clocks were last set, so that nobody knows how many they are.
cdef double aged(double seconds) noexcept nogil
