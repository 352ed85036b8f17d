"""JWTAuthenticator: JSON Web Tokens (RFC 7519), checked before and after their signature."""

from __future__ import annotations

import base64
import inspect
import json
import math
import os
import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from wsc_fast._core import clock
from wsc_fast._core.clients import check_id
from wsc_fast.auth.key_file import KeyFile
from wsc_fast.auth.keys import (
    Key,
    Keys,
    checked_algorithms,
    key_of,
    pyjwt,
    some_keys_of,
    strings,
)
from wsc_fast.auth.reader import Refused, TokenReader
from wsc_fast.errors import ConfigError, ValidationError
from wsc_fast.upgrade.identity import Identity

if TYPE_CHECKING:
    import jwt

# Characters of a JWT's header, which is read before the signature is checked.
HEADER_MAX = 2048
# Three parts in base64url (RFC 7515 section 7.1).
_COMPACT_JWS = re.compile(r"([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+").fullmatch


class JWTAuthenticator(TokenReader):
    """Authenticates by JSON Web Tokens (RFC 7519) that somebody else signs.

    To be given to a hub: `Hub(authenticate=JWTAuthenticator(key, algorithms=["ES256"]))`. Needs
    PyJWT: `pip install 'wsc_fast[jwt]'`. `exp`, `nbf` and `iat` are checked wherever a token has
    them; `exp` plus the leeway is the identity's `expires_at`, when the hub ends the connection.

    Args:
        key: the secret (HS*) or the public key in PEM, or as `cryptography` has it; or `jwks`.
        algorithms: the names that a token may be signed with: HS256, HS384, HS512, RS*, PS*, ES*
            and EdDSA. HS* cannot be mixed with others. None takes those that the JWKS names.
        jwks: a JSON Web Key Set (RFC 7517), as a mapping, or the path of a file. The file is looked
            at once a second at most, when somebody connects, and read anew when it has changed.
            Keys of a set that cannot be used are left out; a set without any is a ConfigError at
            first, and takes no token later. A file that is no JWKS leaves the old keys for a day.
            Each logs a line. A token's `kid` chooses the key; a token without one is good only
            where the set has a single key.
        audience: what `aud` must name, or one of what it must name. None refuses tokens that name
            any (RFC 7519 section 4.1.3).
        issuer: what `iss` must be, or be one of. None takes any.
        leeway: seconds that our clock and the issuer's may differ.
        user_claim: the claim that is the user id; it must be a str.
        require: claims without which a token is refused, besides those named above.
        typ: what the header `typ` must be, such as "at+jwt" (RFC 8725 section 3.11), in any case
            and with or without "application/". None takes any.
        max_lifetime: seconds from now that `exp` may lie ahead at most; a token without `exp` is
            refused then. None takes any.
        identity: `identity(claims) -> Identity | None`, plain: makes the Identity of the claims of
            a token that is good; None refuses. Its `expires_at` can be earlier than the token's,
            not later. Its exceptions are reported like those of any `authenticate`.
        header: take it from `Authorization: Bearer TOKEN`.
        cookie: take it from the cookie of this name.
        subprotocol: take it from an offered subprotocol `bearer.TOKEN`; the client offers a real
            one beside it.
        query: take it from the query parameter of this name. It lands in logs and histories.

    Raises:
        ConfigError: PyJWT is missing, a key or JWKS cannot be used with these algorithms (too
            short, of another type), or another argument is none. No text shows a key.

    Thread-safety: any thread; one that reads the file anew does not hold up the others.
    """

    def __init__(
        self,
        key: Any = None,
        *,
        algorithms: Collection[str] | None = None,
        jwks: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        audience: str | Collection[str] | None = None,
        issuer: str | Collection[str] | None = None,
        leeway: float = 0.0,
        user_claim: str = "sub",
        require: Collection[str] = ("exp",),
        typ: str | None = None,
        max_lifetime: float | None = None,
        identity: Callable[[dict[str, Any]], Identity | None] | None = None,
        header: bool = True,
        cookie: str | None = None,
        subprotocol: bool = True,
        query: str | None = None,
    ) -> None:
        super().__init__(header, cookie, subprotocol, query)
        wanted = None if algorithms is None else checked_algorithms(algorithms)
        if type(leeway) not in (int, float) or not 0 <= leeway < math.inf:
            raise ConfigError(f"leeway must be a number of seconds, 0 or more, not {leeway!r}")
        if not isinstance(user_claim, str) or not user_claim:
            raise ConfigError(f"user_claim must be the name of a claim, not {user_claim!r}")
        if typ is not None and not (isinstance(typ, str) and typ):
            raise ConfigError(f"typ must be the type of a token or None, not {typ!r}")
        if max_lifetime is not None and not (
            type(max_lifetime) in (int, float) and 0 < max_lifetime < math.inf
        ):
            raise ConfigError(f"max_lifetime must be seconds or None, not {max_lifetime!r}")
        self._typ = None if typ is None else _media_type(typ)
        self._max_lifetime = max_lifetime
        if identity is not None and (
            not callable(identity) or inspect.iscoroutinefunction(identity)
        ):
            raise ConfigError("identity must be a plain function, or None")
        self._audience = None if audience is None else _names("audience", audience)
        self._issuer = None if issuer is None else _names("issuer", issuer)
        self._leeway = float(leeway)
        self._user_claim = user_claim
        self._make_identity = identity
        required = strings("require", require)
        if (key is None) == (jwks is None):
            raise ConfigError("give either key or jwks")
        needs_cryptography = wanted is None or not wanted[0].startswith("HS")
        self._decoder: jwt.PyJWT = pyjwt(needs_cryptography).PyJWT(
            {"require": list(required), "verify_signature": True}
        )
        self._key: Key | None = None
        self._keys: Callable[[], Keys] = dict
        if jwks is None:
            if wanted is None:
                raise ConfigError("a key needs algorithms, such as ['ES256']")
            self._key = key_of(key, wanted)
        elif isinstance(jwks, Mapping):
            keys = some_keys_of(jwks, wanted)
            self._keys = lambda: keys
        elif isinstance(jwks, (str, os.PathLike)):
            self._keys = KeyFile(os.fspath(jwks), wanted).current
        else:
            raise ConfigError(f"jwks must be a path or a mapping, not {type(jwks).__name__}")

    def _identify(self, token: str) -> Identity:
        try:
            claims, expires_at = self._verified(token)
            if self._make_identity is None:
                user_id = check_id("user", claims.get(self._user_claim))
                return Identity(user_id, expires_at=expires_at)
        except Refused:
            raise
        except Exception as error:  # by whatever way a token was made to fail
            # Not the text: PyJWT's quote the token.
            raise Refused(type(error).__name__) from None
        identity = self._make_identity(claims)
        if identity is None:
            raise Refused("refused by the application")
        if not isinstance(identity, Identity):
            raise ValidationError(
                f"identity must return Identity or None, not {type(identity).__name__}"
            )
        identity = _until(identity, expires_at)
        ends = identity.expires_at
        if ends is not None and type(ends) in (int, float) and ends <= clock.time():
            raise Refused("the identity has expired")
        return identity

    def _verified(self, token: str) -> tuple[dict[str, Any], float | None]:
        # The claims of a good token, and when it ends.
        match = _COMPACT_JWS(token)
        if match is None:
            raise Refused("the token is no JWT")
        part = match[1]
        if len(part) > HEADER_MAX:
            raise Refused("the header of the token is too long")
        header = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        if not isinstance(header, dict):
            raise Refused("the token is no JWT")
        if "crit" in header or "b64" in header:
            raise Refused("an unknown extension")  # RFC 7515 section 4.1.11: must be refused
        if not isinstance(header.get("kid", ""), str):
            raise Refused("a kid that is no str")
        typ = header.get("typ")
        if self._typ is not None and not (isinstance(typ, str) and _media_type(typ) == self._typ):
            raise Refused("a token of another type")
        key = self._chosen(header)
        claims: dict[str, Any] = self._decoder.decode(
            token,
            key.key,
            algorithms=key.algorithms,
            audience=self._audience,
            issuer=self._issuer,
            leeway=self._leeway,
        )
        for name in ("exp", "nbf", "iat"):
            # PyJWT takes text for a number too (RFC 7519 section 2: NumericDate).
            if name in claims and type(claims[name]) not in (int, float):
                raise Refused("a time that is no number")
        if self._max_lifetime is not None and not (
            claims.get("exp", math.inf) - clock.time() <= self._max_lifetime + self._leeway
        ):
            raise Refused("a token that lives for too long")
        if "exp" not in claims:
            return claims, None
        return claims, float(int(claims["exp"])) + self._leeway

    def _chosen(self, header: dict[str, Any]) -> Key:
        if self._key is not None:
            candidates: tuple[Key, ...] = (self._key,)
        else:
            keys = self._keys()
            if "kid" in header:
                candidates = keys.get(header["kid"], ())
            else:
                candidates = tuple(key for same in keys.values() for key in same)
                if len(candidates) != 1:
                    raise Refused("no kid, where there are several keys")
        for key in candidates:
            if header.get("alg") in key.algorithms:
                return key
        raise Refused("no key of this kid, or not for this algorithm")


def _until(identity: Identity, expires_at: float | None) -> Identity:
    """The identity, ending then if it does not end earlier."""
    own = identity.expires_at
    if expires_at is None or (own is not None and own <= expires_at):
        return identity
    ending: Identity = msgspec.structs.replace(identity, expires_at=expires_at)
    return ending


def _media_type(typ: str) -> str:
    # RFC 7515 section 4.1.9: without "application/" where nothing else has a slash.
    return typ.lower().removeprefix("application/")


def _names(name: str, value: object) -> tuple[str, ...]:
    items = strings(name, (value,) if isinstance(value, str) else value)
    if not items:
        raise ConfigError(f"{name} is empty: no token would be taken; None asks for none")
    return items
