"""TLS contexts of a server: made from PEM files, and whose TLS serves one."""

from __future__ import annotations

import ssl

import aiofastnet

from wsc_fast._core import tls_stream
from wsc_fast.errors import ConfigError

_OP_ENABLE_KTLS = 8  # openssl/ssl.h


def tls_context(certfile: str, keyfile: str | None) -> ssl.SSLContext:
    """A server's TLS context for PEM files: TLS 1.2 and newer.

    Args:
        certfile: the certificate and its chain.
        keyfile: its key; None where the key is in the same file.

    Returns:
        ssl.SSLContext.

    Raises:
        ConfigError: they cannot be loaded.

    Thread-safety: any thread.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Without a password an encrypted key would ask for it at the terminal.
        context.load_cert_chain(certfile, keyfile, password="")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the certificate {certfile!r} with the key {keyfile or certfile!r} cannot be loaded: "
            f"{error}"
        ) from error
    return context


def can_serve(context: ssl.SSLContext) -> bool:
    """Whether the engine's own transport can serve this context; asked anew for each connection."""
    return (
        aiofastnet.OPENSSL_DYN_LIBS is not None
        and tls_stream.can_serve()
        # Python would be called from the middle of a flush.
        and getattr(context, "_msg_callback", None) is None
        and not context.options & _OP_ENABLE_KTLS
    )


def needs_the_loops_tls(context: ssl.SSLContext) -> bool:
    """Whether aiofastnet 1.2 cannot serve this context; asked anew for each connection."""
    return (
        # OpenSSL is linked into Python: its way without the symbols fails after a pause.
        aiofastnet.OPENSSL_DYN_LIBS is None
        # CPython's callbacks look for an object of its `ssl` module, and crash without one.
        or context.sni_callback is not None
        or context.keylog_filename is not None
        or getattr(context, "_msg_callback", None) is not None
        # It decodes each client's certificate through a temporary file, and hangs without one.
        or context.verify_mode != ssl.CERT_NONE
        # With kTLS it may keep the rest of a record (OP_ENABLE_KTLS, from Python 3.12 on by name).
        or bool(context.options & _OP_ENABLE_KTLS)
    )
