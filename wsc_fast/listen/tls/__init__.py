"""TLS before a connection is accepted: contexts, and when a handshake may begin."""
