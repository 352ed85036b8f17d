PICOWS_BUILT_FOR: str
DEBUG_BUILD: bool

def encode_frame(message: bytes | bytearray | memoryview | str) -> bytes:
    """The frame of a message as it would go on the wire.

    Args:
        message: bytes (sent as binary) or str (sent as text).

    Returns:
        bytes: header and payload (RFC 6455 section 5.2), unmasked, FIN set.

    Raises:
        ValidationError: a str with a lone surrogate, or a non-contiguous memoryview.
        MessageTypeError: anything that is neither bytes nor str.

    Thread-safety: any thread.
    """

def check_close(code: object, reason: object) -> int:
    """Raises ValidationError for a close frame that may not be sent (RFC 6455 section 7.4.2).

    Args:
        code: any object; 1000-1003, 1007-1014 and 3000-4999 pass.
        reason: any object; a str passes.

    Raises:
        ValidationError: one of them does not pass.

    Thread-safety: any thread.
    """
