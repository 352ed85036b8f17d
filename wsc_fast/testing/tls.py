"""Certificates and TLS contexts for tests. `Authority` needs trustme (`wsc_fast[testing]`)."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trustme

# A certificate is for these, if nothing else is said.
NAMES = ("localhost", "127.0.0.1")


class Authority:
    """A certificate authority that lives as long as a test run.

    Attributes:
        ca: the `trustme.CA` behind it, for other certificates than these.

    Raises:
        ImportError: if trustme is not installed.
    """

    ca: trustme.CA

    def __init__(self) -> None:
        try:
            import trustme
        except ImportError as error:
            raise ImportError(
                "Authority needs trustme: pip install 'wsc_fast[testing]'", name="trustme"
            ) from error
        self.ca = trustme.CA()

    def server_context(self, *names: str) -> ssl.SSLContext:
        """A context for `hub.start(ssl=...)`, with a certificate of its own.

        Args:
            *names: host names and addresses that the certificate is for; localhost and 127.0.0.1
                if none is given.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.ca.issue_cert(*(names or NAMES)).configure_cert(context)
        return context

    def client_context(self) -> ssl.SSLContext:
        """A client's context that trusts this authority, and nobody else."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.ca.configure_trust(context)
        return context

    def write(self, directory: Path, *names: str) -> tuple[Path, Path]:
        """Writes a new certificate and its key, for programs that load them from files.

        Args:
            directory: where the files are written; those of an earlier call are written over.
            *names: as for `server_context`.

        Returns:
            the paths of the chain and of the key, both PEM.
        """
        certificate = self.ca.issue_cert(*(names or NAMES))
        chain, key = directory / "certificate.pem", directory / "key.pem"
        chain.unlink(missing_ok=True)
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(chain, append=True)
        certificate.private_key_pem.write_to_path(key)
        return chain, key


def trusting() -> ssl.SSLContext:
    """A client's context that takes any certificate, for servers in processes of their own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def client_hello(context: ssl.SSLContext | None = None) -> bytes:
    """The first bytes of a TLS client, which may be sent again and again.

    Args:
        context: a client's context; None for `trusting()`.
    """
    outgoing = ssl.MemoryBIO()
    client = (context or trusting()).wrap_bio(
        ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1"
    )
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()
