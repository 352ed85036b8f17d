from typing import final

@final
class ReadBuffer:
    """The memory that all connections of a hub read into (internal)."""
