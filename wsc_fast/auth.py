"""Ready-made authenticators: who a client is, by a token that its upgrade request carries.

Rules:

    1. A token is taken from the places that are switched on. Two different ones in a request, one
       that is too long, and one that is no visible ASCII are refused before anything is computed.
    2. The answer is an Identity or None, whatever a request carries. Only the application's own
       `identity` function may raise.
    3. No token, no part of one and nothing that one says goes to a log: the line of a refusal
       names its reason in our words or as the class of an exception.
    4. A token is compared by its digest, in constant time; what is refused earlier depends on the
       request and on what is public (algorithms, key ids, times), never on a secret.
    5. The configuration decides which key and which algorithms are tried. A token's header can only
       name one of them; a key of one family is never given to another.
    6. Only the Identity counts: no id is taken from the path, the query, or any header.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import inspect
import json
import math
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from wsc_fast._core.clients import check_id
from wsc_fast._core.handshake import MOST_PAIRS
from wsc_fast.errors import ConfigError, ValidationError
from wsc_fast.log import log
from wsc_fast.upgrade.identity import Identity, check_identity
from wsc_fast.upgrade.negotiation import MOST_ITEMS, list_items
from wsc_fast.upgrade.request import Request, head_of

if TYPE_CHECKING:
    import jwt

__all__ = ["JWTAuthenticator", "TokenAuthenticator"]

# Characters of a token; more is refused unread.
TOKEN_MAX = 8192
# Characters of a JWT's header, which is read before the signature is checked.
HEADER_MAX = 2048
# Characters of a static token; less can be guessed.
TOKEN_MIN = 16
# Seconds between two looks at a JWKS file, and the most that is read of one.
JWKS_RECHECK = 1.0
JWKS_MAX = 1 << 20
# Seconds that the keys of a file are believed after it could last be used.
JWKS_MAX_AGE = 86_400.0
# Names of offered subprotocols that carry a token begin so.
BEARER_ENTRY = "bearer."

_VISIBLE = re.compile(r"[\x21-\x7e]+").fullmatch
# Three parts in base64url (RFC 7515 section 7.1).
_COMPACT_JWS = re.compile(r"([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+").fullmatch
_COOKIE_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch

# name -> (type of its keys, what these must be): bytes for HMAC, bits for RSA (RFC 7518 sections
# 3.2 and 3.3: at least), names of the curve in a JWK and in `cryptography` for ECDSA.
_ALGORITHMS: dict[str, tuple[str, Any]] = {
    "HS256": ("oct", 32),
    "HS384": ("oct", 48),
    "HS512": ("oct", 64),
    "RS256": ("RSA", 2048),
    "RS384": ("RSA", 2048),
    "RS512": ("RSA", 2048),
    "PS256": ("RSA", 2048),
    "PS384": ("RSA", 2048),
    "PS512": ("RSA", 2048),
    "ES256": ("EC", ("P-256", "secp256r1")),
    "ES384": ("EC", ("P-384", "secp384r1")),
    "ES512": ("EC", ("P-521", "secp521r1")),
    "EdDSA": ("OKP", ("Ed25519", "Ed448")),
}
# Members of a JWK that a verifier needs; d, p, q and their like stay unread.
_PUBLIC_MEMBERS = ("kty", "crv", "n", "e", "x", "y", "k")


class _Refused(Exception):
    """A token that is not taken; the text says why, in our own words."""


class _Ambiguous(ConfigError):
    """Two keys of a JWKS of which none may be taken for the other."""


class _Key(msgspec.Struct, frozen=True):
    """A key as PyJWT wants it, and the algorithms that it may be used with."""

    key: Any
    algorithms: tuple[str, ...]


# By kid; those without one under None.
_Keys = dict[str | None, tuple[_Key, ...]]


def _until(identity: Identity, expires_at: float | None) -> Identity:
    """The identity, ending then if it does not end earlier."""
    own = identity.expires_at
    if expires_at is None or (own is not None and own <= expires_at):
        return identity
    ending: Identity = msgspec.structs.replace(identity, expires_at=expires_at)
    return ending


class _TokenReader:
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
                raise _Refused("too many subprotocols")
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
            raise _Refused("several tokens" if found else "no token")
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
        except _Refused as error:
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
        except _Refused:
            return None

    def _checked(self, token: str) -> Identity:
        _check_length(token)
        if not _VISIBLE(token):
            raise _Refused("the token is malformed")
        return self._identify(token)

    def _identify(self, token: str) -> Identity:
        """The identity of a token of visible ASCII; raises _Refused where it is not good."""
        raise NotImplementedError


def _check_length(token: str) -> None:
    if len(token) > TOKEN_MAX:
        raise _Refused("the token is too long")


def _values(pairs: list[tuple[str, str]], name: str, kind: str) -> Iterator[str]:
    if len(pairs) >= MOST_PAIRS:
        raise _Refused(f"too many {kind}")  # another token may be behind those that were read
    return (value for key, value in pairs if key == name)


class TokenAuthenticator(_TokenReader):
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
            raise _Refused("the token is unknown")
        if identity.expires_at is not None and identity.expires_at <= time.time():
            raise _Refused("the identity has expired")
        return identity


def _check_static(which: str, token: object, identity: object) -> None:
    if not isinstance(token, str):
        raise ConfigError(f"{which} must be a str, not {type(token).__name__}")
    if not TOKEN_MIN <= len(token) <= TOKEN_MAX:
        raise ConfigError(
            f"{which} must have {TOKEN_MIN} to {TOKEN_MAX} characters, it has {len(token)}"
        )
    if not _VISIBLE(token):
        raise ConfigError(f"{which} must be visible ASCII without spaces")
    if not isinstance(identity, Identity):
        raise ConfigError(
            f"{which} must stand for an Identity or a user id, not {type(identity).__name__}"
        )
    try:
        check_identity(identity)
    except ValidationError as error:
        raise ConfigError(f"{which}: {error}") from None


class JWTAuthenticator(_TokenReader):
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
        wanted = None if algorithms is None else _checked_algorithms(algorithms)
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
        required = _strings("require", require)
        if (key is None) == (jwks is None):
            raise ConfigError("give either key or jwks")
        needs_cryptography = wanted is None or not wanted[0].startswith("HS")
        self._decoder: jwt.PyJWT = _pyjwt(needs_cryptography).PyJWT(
            {"require": list(required), "verify_signature": True}
        )
        self._key: _Key | None = None
        self._keys: Callable[[], _Keys] = dict
        if jwks is None:
            if wanted is None:
                raise ConfigError("a key needs algorithms, such as ['ES256']")
            self._key = _key_of(key, wanted)
        elif isinstance(jwks, Mapping):
            keys = _some_keys_of(jwks, wanted)
            self._keys = lambda: keys
        elif isinstance(jwks, (str, os.PathLike)):
            self._keys = _KeyFile(os.fspath(jwks), wanted).current
        else:
            raise ConfigError(f"jwks must be a path or a mapping, not {type(jwks).__name__}")

    def _identify(self, token: str) -> Identity:
        try:
            claims, expires_at = self._verified(token)
            if self._make_identity is None:
                user_id = check_id("user", claims.get(self._user_claim))
                return Identity(user_id, expires_at=expires_at)
        except _Refused:
            raise
        except Exception as error:  # by whatever way a token was made to fail
            # Not the text: PyJWT's quote the token.
            raise _Refused(type(error).__name__) from None
        identity = self._make_identity(claims)
        if identity is None:
            raise _Refused("refused by the application")
        if not isinstance(identity, Identity):
            raise ValidationError(
                f"identity must return Identity or None, not {type(identity).__name__}"
            )
        identity = _until(identity, expires_at)
        ends = identity.expires_at
        if ends is not None and type(ends) in (int, float) and ends <= time.time():
            raise _Refused("the identity has expired")
        return identity

    def _verified(self, token: str) -> tuple[dict[str, Any], float | None]:
        # The claims of a good token, and when it ends.
        match = _COMPACT_JWS(token)
        if match is None:
            raise _Refused("the token is no JWT")
        part = match[1]
        if len(part) > HEADER_MAX:
            raise _Refused("the header of the token is too long")
        header = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        if not isinstance(header, dict):
            raise _Refused("the token is no JWT")
        if "crit" in header or "b64" in header:
            raise _Refused("an unknown extension")  # RFC 7515 section 4.1.11: must be refused
        if not isinstance(header.get("kid", ""), str):
            raise _Refused("a kid that is no str")
        typ = header.get("typ")
        if self._typ is not None and not (isinstance(typ, str) and _media_type(typ) == self._typ):
            raise _Refused("a token of another type")
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
                raise _Refused("a time that is no number")
        if self._max_lifetime is not None and not (
            claims.get("exp", math.inf) - time.time() <= self._max_lifetime + self._leeway
        ):
            raise _Refused("a token that lives for too long")
        if "exp" not in claims:
            return claims, None
        return claims, float(int(claims["exp"])) + self._leeway

    def _chosen(self, header: dict[str, Any]) -> _Key:
        if self._key is not None:
            candidates: tuple[_Key, ...] = (self._key,)
        else:
            keys = self._keys()
            if "kid" in header:
                candidates = keys.get(header["kid"], ())
            else:
                candidates = tuple(key for same in keys.values() for key in same)
                if len(candidates) != 1:
                    raise _Refused("no kid, where there are several keys")
        for key in candidates:
            if header.get("alg") in key.algorithms:
                return key
        raise _Refused("no key of this kid, or not for this algorithm")


def _media_type(typ: str) -> str:
    # RFC 7515 section 4.1.9: without "application/" where nothing else has a slash.
    return typ.lower().removeprefix("application/")


def _pyjwt(needs_cryptography: bool) -> Any:
    try:
        import jwt

        if needs_cryptography:
            import cryptography  # noqa: F401
    except ImportError as error:
        package = "PyJWT" if error.name == "jwt" else error.name
        raise ConfigError(
            f"JWTAuthenticator needs {package}: pip install 'wsc_fast[jwt]'"
        ) from None
    return jwt


def _strings(name: str, value: object) -> tuple[str, ...]:
    # A str is a collection of str too, of its letters.
    if isinstance(value, (str, bytes)) or not isinstance(value, Collection):
        raise ConfigError(f"{name} must be a list of str, not {value!r}")
    items = tuple(value)
    if not all(isinstance(item, str) and item for item in items):
        raise ConfigError(f"{name} must hold non-empty str: {value!r}")
    return items


def _names(name: str, value: object) -> tuple[str, ...]:
    items = _strings(name, (value,) if isinstance(value, str) else value)
    if not items:
        raise ConfigError(f"{name} is empty: no token would be taken; None asks for none")
    return items


def _checked_algorithms(algorithms: object) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(_strings("algorithms", algorithms)))
    if not names:
        raise ConfigError("algorithms is empty")
    for name in names:
        if name.lower() == "none":
            raise ConfigError("algorithms: 'none' would take tokens that nobody has signed")
        if name not in _ALGORITHMS:
            raise ConfigError(f"algorithms: {name!r} is none of {', '.join(_ALGORITHMS)}")
    _check_unmixed(names)
    return names


def _check_unmixed(names: Collection[str]) -> None:
    # Else a public key, which anybody may have, could be taken for a secret (RFC 8725, 2.1).
    if len({_ALGORITHMS[name][0] == "oct" for name in names}) == 2:
        raise ConfigError("algorithms: HS* (a secret) cannot be mixed with those of public keys")


def _key_of(key: object, names: tuple[str, ...]) -> _Key:
    prepared: Any = None
    for name in names:
        try:
            prepared = _pyjwt(False).get_algorithm_by_name(name).prepare_key(key)
        except Exception:  # whose text may show the key
            kind = _ALGORITHMS[name][0]
            wanted = "secret" if kind == "oct" else f"public key in PEM ({kind})"
            raise ConfigError(f"key is no {wanted} for {name}") from None
        prepared = _public(prepared)
        _check_key("key", prepared, name)
    return _Key(prepared, names)


def _public(key: Any) -> Any:
    # A public key verifies as well, so the private half is not kept.
    return key.public_key() if hasattr(key, "public_key") else key


def _check_key(which: str, key: Any, name: str) -> None:
    kind, wanted = _ALGORITHMS[name]
    if kind == "oct" and len(key) < wanted:
        raise ConfigError(f"{which} has {len(key)} bytes, and {name} needs {wanted} at least")
    if kind == "RSA" and key.key_size < wanted:
        raise ConfigError(f"{which} has {key.key_size} bits, and {name} needs {wanted} at least")
    if kind == "EC" and key.curve.name != wanted[1]:
        raise ConfigError(f"{which} is of the curve {key.curve.name}, and {name} needs {wanted[1]}")


def _some_keys_of(document: object, wanted: tuple[str, ...] | None) -> _Keys:
    """The keys of a JWKS to begin with; ConfigError where there are none, or two that exclude each
    other."""
    keys, faults = _keys_of(document, wanted)
    for fault in faults:
        if not keys or isinstance(fault, _Ambiguous):
            raise ConfigError(str(fault))
        log.warning("a key is not used: %s", fault, kind=f"a key is not used: {fault}")
    if not keys:
        raise ConfigError("the JWKS has no key for these algorithms")
    return keys


def _keys_of(document: object, wanted: tuple[str, ...] | None) -> tuple[_Keys, list[ConfigError]]:
    """The keys of a JWKS, and why others of it cannot be used; ConfigError for what is no JWKS.

    A key that cannot be used counts as if it were not there (RFC 7517 section 5).
    """
    members = document.get("keys") if isinstance(document, Mapping) else None
    if not isinstance(members, (list, tuple)):
        raise ConfigError("a JWKS must be an object with a list 'keys'")
    keys: _Keys = {}
    faults: list[ConfigError] = []
    for number, member in enumerate(members, 1):
        which = f"key {number} of the JWKS"
        try:
            names = _names_of(which, member, wanted)
            if names:  # else it is not understood, or not for us
                _add_key(keys, which, member, names)
        except ConfigError as error:
            faults.append(error)
    return keys, faults


def _add_key(keys: _Keys, which: str, member: Mapping[str, Any], names: tuple[str, ...]) -> None:
    data = {name: member[name] for name in _PUBLIC_MEMBERS if name in member}
    try:
        key = _public(_pyjwt(False).get_algorithm_by_name(names[0]).from_jwk(data))
    except Exception as error:  # whose text may show the key
        raise ConfigError(f"{which} cannot be read ({type(error).__name__})") from None
    for name in names:
        _check_key(which, key, name)
    kid = member.get("kid")
    if not (kid is None or isinstance(kid, str)):
        raise ConfigError(f"{which} has a kid that is no str")
    for other in keys.get(kid, ()) if kid is not None else ():
        if set(other.algorithms) & set(names):
            raise _Ambiguous(f"{which} has the kid of another key")
    others = [name for same in keys.values() for key in same for name in key.algorithms]
    try:
        _check_unmixed([*others, *names])
    except ConfigError as error:
        raise _Ambiguous(str(error)) from None
    keys[kid] = (*keys.get(kid, ()), _Key(key, names))


def _names_of(which: str, member: object, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """The algorithms that a member of a JWKS may be used with."""
    if not isinstance(member, Mapping):
        raise ConfigError(f"{which} is no object")
    operations = member.get("key_ops")
    if member.get("use", "sig") != "sig":
        return ()
    if isinstance(operations, (list, tuple)) and not {"verify", "sign"} & set(map(str, operations)):
        return ()
    kind, curve, name = member.get("kty"), member.get("crv"), member.get("alg")
    if name is None:
        if wanted is None:
            raise ConfigError(f"{which} names no alg: give algorithms")
        return tuple(
            name
            for name in wanted
            if _ALGORITHMS[name][0] == kind
            and (kind not in ("EC", "OKP") or curve in _ALGORITHMS[name][1])
        )
    if not isinstance(name, str) or name not in _ALGORITHMS:
        return ()
    if wanted is not None and name not in wanted:
        return ()
    if _ALGORITHMS[name][0] != kind:
        raise ConfigError(f"{which} is not of the type that its alg needs")
    return (name,)


class _KeyFile:
    """A JWKS in a file that may change."""

    def __init__(self, path: str, wanted: tuple[str, ...] | None) -> None:
        self._path = path
        self._wanted = wanted
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] | None = None  # mtime, size and inode; None: look again
        self._content: bytes | None = None  # digest; None: it could not be read
        self._usable_at = time.monotonic()  # when it was last seen to be a JWKS
        self._next_look = self._usable_at + JWKS_RECHECK
        try:
            self._keys = _some_keys_of(self._parsed(self._read()), wanted)
        except (OSError, ConfigError) as error:
            raise ConfigError(f"jwks: {path}: {_reason(error)}") from None
        self._usable = True

    def current(self) -> _Keys:
        """The keys, of the file as it was a second ago or is now."""
        if time.monotonic() >= self._next_look and self._lock.acquire(blocking=False):
            try:
                now = time.monotonic()
                self._next_look = now + JWKS_RECHECK
                self._look()
                if self._usable:
                    self._usable_at = now
                elif self._keys and now - self._usable_at > JWKS_MAX_AGE:
                    self._keys = {}
                    log.error("no JWKS in %s for too long: no token is taken", self._path)
            finally:
                self._lock.release()
        return self._keys

    def _look(self) -> None:
        before = self._content
        try:
            if self._seen is not None and self._seen == _version(os.stat(self._path)):
                return
            data = self._read()
            if self._content == before:
                return
            self._usable = False
            self._keys, faults = _keys_of(self._parsed(data), self._wanted)
        except Exception as error:
            if isinstance(error, OSError):
                self._seen = self._content = None
                self._usable = False
                if before is None:
                    return  # said already
            log.warning(
                "the JWKS in %s cannot be used, the old keys stay: %s",
                self._path,
                _reason(error),
                extra={"event": "jwks", "reason": _reason(error)},
                kind=f"JWKS: {_reason(error)}",
            )
            return
        self._usable = True
        for fault in faults:
            log.warning("a key in %s is not used: %s", self._path, fault, kind=f"key: {fault}")
        if not self._keys:
            log.warning("the JWKS in %s has no key: no token is taken", self._path)

    def _read(self) -> bytes:
        # Opening a pipe would wait for its other end.
        with open(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(0, "not a file")
            data = file.read(JWKS_MAX + 1)
        # A file of a moment ago may be written once more at the same mtime.
        settled = time.time() - status.st_mtime > JWKS_RECHECK
        self._seen = _version(status) if settled else None
        self._content = hashlib.sha256(data).digest()
        return data

    def _parsed(self, data: bytes) -> Any:
        if len(data) > JWKS_MAX:
            raise ConfigError(f"it has more than {JWKS_MAX} bytes")
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise ConfigError("it is no JSON") from None


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _reason(error: Exception) -> str:
    # An OSError's text has the path once more; those of others may show a key.
    if isinstance(error, OSError):
        return str(error.strerror)
    return str(error) if isinstance(error, ConfigError) else type(error).__name__
