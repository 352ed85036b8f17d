"""Negotiation of an upgrade: permessage-deflate (RFC 7692 section 7) and the subprotocol.

Pure functions of the request's header values and the configuration. An offer that cannot be
understood or agreed on is declined, which never fails the upgrade (RFC 6455 section 9.1).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

import msgspec

# A token, and what may follow the name of a parameter: = and a token or a quoted string. Each part
# can end in one way only, so that matching is linear in the length of the header.
_TOKEN = re.compile(r"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*")
_VALUE = re.compile(r"=[ \t]*(?:([!#$%&'*+.^_`|~0-9A-Za-z-]+)|\"((?:[^\"\\]|\\.)*)\")[ \t]*")
# Between two offers; empty ones are none (RFC 9110 section 5.6.1.2).
_BETWEEN = re.compile(r"[ \t,]*")
_WINDOW_BITS = re.compile(r"[89]|1[0-5]").fullmatch
# zlib cannot compress with a window of 8 bits.
_SMALLEST_WINDOW = 9
_LARGEST_WINDOW = 15
# Bounds on what is read, since anybody may send it: offers, parameters of each offer, characters of
# all offers. Browsers send one offer of some 50 characters.
_MOST_OFFERS = 16
_MOST_PARAMETERS = 16
_LONGEST_OFFERS = 4_096
# Items of another list, such as subprotocols.
MOST_ITEMS = 64

Parameters = list[tuple[str, str | None]]


class Deflate(msgspec.Struct, frozen=True):
    """Parameters of permessage-deflate: what a server wants, or what was agreed on.

    Attributes:
        server_no_context_takeover: each message of the server is compressed by itself.
        client_no_context_takeover: each message of the client is.
        server_max_window_bits: of the server's window, 9 to 15.
        client_max_window_bits: of the client's window, 8 to 15.
        response: the value of Sec-WebSocket-Extensions, where it was agreed on.
    """

    server_no_context_takeover: bool
    client_no_context_takeover: bool
    server_max_window_bits: int
    client_max_window_bits: int
    response: str = ""


def parse_extensions(text: str) -> Iterator[tuple[str, Parameters]]:
    """The offers of a Sec-WebSocket-Extensions header, each with its parameters, in order.

    Ends at the first thing that is none (RFC 6455 section 9.1 has the grammar).
    """
    at = 0
    while at < len(text):
        between = _BETWEEN.match(text, at)
        assert between is not None
        name = _TOKEN.match(text, between.end())
        if name is None:
            return
        at = name.end()
        parameters: Parameters = []
        while text[at : at + 1] == ";":
            parameter = _TOKEN.match(text, at + 1)
            if parameter is None or len(parameters) == _MOST_PARAMETERS:
                return
            at = parameter.end()
            value = _VALUE.match(text, at)
            if value is None:
                parameters.append((parameter[1].lower(), None))
                continue
            at = value.end()
            quoted = value[2]
            unquoted = value[1] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            parameters.append((parameter[1].lower(), unquoted))
        if at < len(text) and text[at] != ",":
            return
        yield name[1].lower(), parameters


def _agree(wanted: Deflate, offer: Parameters) -> Deflate | None:
    """The result of one offer; None where it is invalid or cannot be kept (section 7.1)."""
    given = dict(offer)
    if len(given) != len(offer):
        return None  # a parameter twice
    server_keeps = not wanted.server_no_context_takeover
    client_keeps = not wanted.client_no_context_takeover
    server_window = wanted.server_max_window_bits
    client_window = _LARGEST_WINDOW
    for name, value in offer:
        if name == "server_no_context_takeover" and value is None:
            server_keeps = False
        elif name == "client_no_context_takeover" and value is None:
            client_keeps = False
        elif name == "server_max_window_bits" and value is not None and _WINDOW_BITS(value):
            server_window = min(server_window, int(value))
        elif name == "client_max_window_bits" and (value is None or _WINDOW_BITS(value)):
            client_window = min(wanted.client_max_window_bits, int(value or _LARGEST_WINDOW))
        else:
            return None
    if server_window < _SMALLEST_WINDOW:
        return None
    response = ["permessage-deflate"]
    if not server_keeps:
        response.append("server_no_context_takeover")
    if not client_keeps:
        response.append("client_no_context_takeover")
    if "server_max_window_bits" in given or server_window < _LARGEST_WINDOW:
        response.append(f"server_max_window_bits={server_window}")
    # Only who has named it understands it (section 7.1.2.2).
    if client_window < _LARGEST_WINDOW:
        response.append(f"client_max_window_bits={client_window}")
    return Deflate(
        not server_keeps, not client_keeps, server_window, client_window, "; ".join(response)
    )


@lru_cache(maxsize=256)
def negotiate_deflate(wanted: Deflate, offers: str) -> Deflate | None:
    """Chooses the first offer of permessage-deflate that can be agreed on.

    Args:
        wanted: the server's choice: an offer can make it stricter, never laxer.
        offers: the Sec-WebSocket-Extensions headers of a request, joined by commas.

    Returns:
        Deflate | None: what was agreed on.
    """
    if len(offers) > _LONGEST_OFFERS:
        return None
    for name, parameters in islice(parse_extensions(offers), _MOST_OFFERS):
        if name == "permessage-deflate":
            agreed = _agree(wanted, parameters)
            if agreed is not None:
                return agreed
    return None


def list_items(values: list[str]) -> list[str]:
    """The items of a list of which there may be several headers, MOST_ITEMS at most.

    Args:
        values: of the headers.
    """
    items: list[str] = []
    for value in values:
        left = MOST_ITEMS - len(items)
        items += [item.strip(" \t") for item in value.split(",", left)[:left]]
    return items


def choose_subprotocol(supported: tuple[str, ...], offers: list[str]) -> str | None:
    """The first of the server's subprotocols that the client offers (RFC 6455 section 4.2.2).

    Args:
        supported: HubConfig.subprotocols, in the server's order of preference.
        offers: the Sec-WebSocket-Protocol headers of a request.
    """
    offered = list_items(offers)
    return next((name for name in supported if name in offered), None)
