"""The options that all commands that connect to a hub have, and the way from them to a Peer."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsc_fast.cli.output import UsageFailure, reason_of

if TYPE_CHECKING:
    from wsc_fast.cli.peer import Peer

URL = Annotated[
    str,
    typer.Argument(
        metavar="URL", help="Of the hub, such as ws://localhost:8080/ws; ws:// can be left out."
    ),
]
HEADERS = Annotated[
    list[str] | None,
    typer.Option(
        "--header", "-H", metavar="'NAME: VALUE'", help="Header of the request; may be repeated."
    ),
]
TOKEN = Annotated[
    str | None,
    typer.Option(help="Sends 'Authorization: Bearer TOKEN'.", envvar="WSC_FAST_TOKEN"),
]
ORIGIN = Annotated[str | None, typer.Option(help="Origin header, as a browser sends it.")]
SUBPROTOCOL = Annotated[
    list[str] | None, typer.Option(help="Subprotocol to offer; may be repeated.")
]
INSECURE = Annotated[
    bool, typer.Option("--insecure", "-k", help="Takes any TLS certificate of the hub.")
]
CAFILE = Annotated[
    Path | None, typer.Option(help="Authorities (PEM) to trust instead of the system's.")
]
AS_JSON = Annotated[bool, typer.Option("--json", help="JSON on standard output, for scripts.")]


def peer_of(
    url: str,
    headers: list[str] | None,
    token: str | None,
    origin: str | None,
    subprotocols: list[str] | None,
    insecure: bool,
    cafile: Path | None,
) -> Peer:
    """The hub that these options describe.

    Raises:
        UsageFailure: one of them cannot be used.
    """
    from wsc_fast.cli.peer import Peer, checked_url

    fields = fields_of(headers, token)
    if origin is not None:
        fields.append(("Origin", origin))
    return Peer(checked_url(url), fields, tls_context(insecure, cafile), tuple(subprotocols or ()))


def fields_of(headers: list[str] | None, token: str | None) -> list[tuple[str, str]]:
    """The header fields of a request.

    Raises:
        UsageFailure: a header is none.
    """
    fields = []
    for header in headers or ():
        name, colon, value = header.partition(":")
        if not colon or not name.strip() or not header.isprintable() or not header.isascii():
            raise UsageFailure(f"{header!r} is no header, expected 'Name: value' in ASCII")
        fields.append((name.strip(), value.strip()))
    if token is not None:
        if not token.isprintable() or not token.isascii():
            raise UsageFailure("the token holds characters that no header can have")
        fields.append(("Authorization", f"Bearer {token}"))
    return fields


def tls_context(insecure: bool, cafile: Path | None) -> ssl.SSLContext:
    """The TLS context of a client.

    Raises:
        UsageFailure: the file of authorities cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=cafile)
    except OSError as error:
        raise UsageFailure(f"{cafile} cannot be used: {reason_of(error)}") from None
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
