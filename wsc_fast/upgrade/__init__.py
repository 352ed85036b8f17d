"""From the first byte of a connection to the answer to its request, and to an identity."""
