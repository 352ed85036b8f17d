PICOWS_BUILT_FOR: str
DEBUG_BUILD: bool

def encode_frame(message: bytes | bytearray | memoryview | str) -> bytes: ...
