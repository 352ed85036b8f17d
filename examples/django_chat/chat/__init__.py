"""A chat whose messages are in the database, and whose users are Django's."""
