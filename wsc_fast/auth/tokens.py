"""TokenAuthenticator: tokens that are known beforehand, kept as digests."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from wsc_fast._core import clock
from wsc_fast.auth.reader import TOKEN_MAX, VISIBLE, Refused, TokenReader
from wsc_fast.errors import ConfigError, ValidationError
from wsc_fast.upgrade.identity import Identity, check_identity

# Characters of a static token; less can be guessed.
TOKEN_MIN = 16


class TokenAuthenticator(TokenReader):
    """Authenticates by tokens that are known beforehand, such as those of services.

    To be given to a hub: `Hub(authenticate=TokenAuthenticator({token: "billing"}))`. It keeps
    digests (SHA-256), not the tokens.

    Args:
        tokens: token -> Identity, or the user id; copied. A token is 16 to 8192 characters of
            visible ASCII; `secrets.token_urlsafe()` makes good ones.
        header: take it from `Authorization: Bearer TOKEN`.
        cookie: take it from the cookie of this name.
        subprotocol: take it from an offered subprotocol `bearer.TOKEN`; the client offers a real
            one beside it. Such a token has only letters, digits and ``!#$%&'*+.^_`|~-``.
        query: take it from the query parameter of this name. It lands in logs and histories.

    Raises:
        ConfigError: no tokens, one that is too short, too long or not visible ASCII, an identity
            that cannot be one, no place to take a token from. No text shows a token.

    Thread-safety: any thread; nothing changes after the construction.
    """

    def __init__(
        self,
        tokens: Mapping[str, Identity | str],
        *,
        header: bool = True,
        cookie: str | None = None,
        subprotocol: bool = True,
        query: str | None = None,
    ) -> None:
        super().__init__(header, cookie, subprotocol, query)
        if not isinstance(tokens, Mapping):
            raise ConfigError(f"tokens must be a mapping, not {type(tokens).__name__}")
        if not tokens:
            raise ConfigError("tokens is empty: nobody could connect")
        # The digest twice, so that the one that is found can be compared in constant time.
        self._known: dict[bytes, tuple[bytes, Identity]] = {}
        for number, (token, value) in enumerate(tokens.items(), 1):
            identity = Identity(value) if isinstance(value, str) else value
            _check_static(f"token {number} of {len(tokens)}", token, identity)
            digest = hashlib.sha256(token.encode()).digest()
            self._known[digest] = digest, identity
        self._unknown = bytes(hashlib.sha256().digest_size), Identity("")

    def _identify(self, token: str) -> Identity:
        digest = hashlib.sha256(token.encode()).digest()
        known, identity = self._known.get(digest, self._unknown)
        if not hmac.compare_digest(known, digest):
            raise Refused("the token is unknown")
        if identity.expires_at is not None and identity.expires_at <= clock.time():
            raise Refused("the identity has expired")
        return identity


def _check_static(which: str, token: object, identity: object) -> None:
    if not isinstance(token, str):
        raise ConfigError(f"{which} must be a str, not {type(token).__name__}")
    if not TOKEN_MIN <= len(token) <= TOKEN_MAX:
        raise ConfigError(
            f"{which} must have {TOKEN_MIN} to {TOKEN_MAX} characters, it has {len(token)}"
        )
    if not VISIBLE(token):
        raise ConfigError(f"{which} must be visible ASCII without spaces")
    if not isinstance(identity, Identity):
        raise ConfigError(
            f"{which} must stand for an Identity or a user id, not {type(identity).__name__}"
        )
    try:
        check_identity(identity)
    except ValidationError as error:
        raise ConfigError(f"{which}: {error}") from None
