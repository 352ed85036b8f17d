from typing import Self, final

from typing_extensions import disjoint_base

@disjoint_base
class MemberSet:
    """The members of a room, or the clients of a user (internal)."""
    def __new__(cls, id: str) -> Self: ...
    @property
    def id(self) -> str: ...

@disjoint_base
class Room(MemberSet):
    """A named set of clients (internal)."""
    @property
    def deleted(self) -> bool: ...

@final
class KeptRoom(Room):
    """A room with a history (internal)."""
    @property
    def aware(self) -> int: ...
