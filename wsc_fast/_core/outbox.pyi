from picows import WSListener

class Sink(WSListener):
    @property
    def id(self) -> str: ...
    @property
    def user_id(self) -> str: ...
