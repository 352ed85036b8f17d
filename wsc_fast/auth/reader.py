"""The token of a request: the places that it is taken from, and what is refused unread."""

from __future__ import annotations

import re
from collections.abc import Iterator

from wsc_fast._core.handshake import MOST_PAIRS
from wsc_fast.errors import ConfigError, ValidationError
from wsc_fast.upgrade.identity import Identity
from wsc_fast.upgrade.negotiation import MOST_ITEMS, list_items
from wsc_fast.upgrade.request import Request, head_of

# Characters of a token; more is refused unread.
TOKEN_MAX = 8192
# Names of offered subprotocols that carry a token begin so.
BEARER_ENTRY = "bearer."

VISIBLE = re.compile(r"[\x21-\x7e]+").fullmatch
_COOKIE_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch


class Refused(Exception):
    """A token that is not taken; the text says why, in our own words."""


class TokenReader:
    """Takes the token out of a request; what the two authenticators have in common."""

    def __init__(
        self, header: bool, cookie: str | None, subprotocol: bool, query: str | None
    ) -> None:
        for name, flag in (("header", header), ("subprotocol", subprotocol)):
            if type(flag) is not bool:
                raise ConfigError(f"{name} must be True or False, not {flag!r}")
        if cookie is not None and not (isinstance(cookie, str) and _COOKIE_NAME(cookie)):
            raise ConfigError(f"cookie must be the name of a cookie or None, not {cookie!r}")
        if query is not None and not (isinstance(query, str) and query):
            raise ConfigError(f"query must be the name of a parameter or None, not {query!r}")
        if not (header or cookie or subprotocol or query):
            raise ConfigError("header, cookie, subprotocol and query are all off: no token comes")
        self._header = header
        self._cookie = cookie
        self._subprotocol = subprotocol
        self._query = query

    def _sent(self, request: Request) -> Iterator[str]:
        # All lines of a name and all cookies: `request.cookies` and `.query` tell the first only.
        head = head_of(request)
        if self._header:
            for value in head.headers.getall("Authorization", []):
                scheme, _, rest = value.partition(" ")
                if scheme.lower() == "bearer":  # RFC 9110 section 11.1: in any case
                    yield rest.strip(" \t")
        if self._cookie is not None:
            yield from _values(head.cookie_pairs(), self._cookie, "cookies")
        if self._subprotocol and head.protocols is not None:
            offers = list_items(head.protocols)
            if len(offers) >= MOST_ITEMS:
                raise Refused("too many subprotocols")
            for offer in offers:
                if offer.startswith(BEARER_ENTRY):
                    yield offer[len(BEARER_ENTRY) :]
        if self._query is not None:
            yield from _values(head.query_pairs(), self._query, "pairs in the query")

    def _token_of(self, request: Request) -> str:
        found: set[str] = set()
        for token in self._sent(request):
            _check_length(token)
            if token:  # an emptied cookie is none
                found.add(token)
        if len(found) != 1:
            raise Refused("several tokens" if found else "no token")
        return found.pop()

    def __call__(self, request: Request) -> Identity | None:
        """The identity whose token a request carries.

        Args:
            request: an upgrade.

        Returns:
            Identity | None: None where it carries no token, or one that is not good.

        Raises:
            Exception: only what the application's own function `identity` raises.
            ValidationError: that function returned something else than it has to.

        Thread-safety: any thread.
        """
        try:
            return self._checked(self._token_of(request))
        except Refused as error:
            request.refusal = str(error)
            return None

    def identity(self, token: str) -> Identity | None:
        """The identity of a token, for requests of the application's own; the rules are the same.

        Args:
            token: without "Bearer".

        Returns:
            Identity | None: None where the token is not good.

        Raises:
            Exception: only what the application's own function `identity` raises.
            ValidationError: the token is no str, or that function returned something else than it
                has to.

        Thread-safety: any thread.
        """
        if not isinstance(token, str):
            raise ValidationError(f"token must be a str, not {type(token).__name__}")
        try:
            return self._checked(token)
        except Refused:
            return None

    def _checked(self, token: str) -> Identity:
        _check_length(token)
        if not VISIBLE(token):
            raise Refused("the token is malformed")
        return self._identify(token)

    def _identify(self, token: str) -> Identity:
        """The identity of a token of visible ASCII; raises Refused where it is not good."""
        raise NotImplementedError


def _check_length(token: str) -> None:
    if len(token) > TOKEN_MAX:
        raise Refused("the token is too long")


def _values(pairs: list[tuple[str, str]], name: str, kind: str) -> Iterator[str]:
    if len(pairs) >= MOST_PAIRS:
        raise Refused(f"too many {kind}")  # another token may be behind those that were read
    return (value for key, value in pairs if key == name)
