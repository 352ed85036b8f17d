from typing_extensions import disjoint_base

@disjoint_base
class Sink:
    """The sending half of a connection (internal; `Client` is the public class)."""
    @property
    def id(self) -> str: ...
    @property
    def user_id(self) -> str: ...
