"""The keys that tokens are verified with, each for algorithms of its own kind.

A key is checked when it is given (RFC 7518 section 3, RFC 8725): its type, its length, its curve.
No text shows a key.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from wsc_fast.errors import ConfigError
from wsc_fast.log import log

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


class _Ambiguous(ConfigError):
    """Two keys of a JWKS of which none may be taken for the other."""


class Key(msgspec.Struct, frozen=True):
    """A key as PyJWT wants it, and the algorithms that it may be used with."""

    key: Any
    algorithms: tuple[str, ...]


# By kid; those without one under None.
Keys = dict[str | None, tuple[Key, ...]]


def pyjwt(needs_cryptography: bool) -> Any:
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


def strings(name: str, value: object) -> tuple[str, ...]:
    # A str is a collection of str too, of its letters.
    if isinstance(value, (str, bytes)) or not isinstance(value, Collection):
        raise ConfigError(f"{name} must be a list of str, not {value!r}")
    items = tuple(value)
    if not all(isinstance(item, str) and item for item in items):
        raise ConfigError(f"{name} must hold non-empty str: {value!r}")
    return items


def checked_algorithms(algorithms: object) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(strings("algorithms", algorithms)))
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


def key_of(key: object, names: tuple[str, ...]) -> Key:
    prepared: Any = None
    for name in names:
        try:
            prepared = pyjwt(False).get_algorithm_by_name(name).prepare_key(key)
        except Exception:  # whose text may show the key
            kind = _ALGORITHMS[name][0]
            wanted = "secret" if kind == "oct" else f"public key in PEM ({kind})"
            raise ConfigError(f"key is no {wanted} for {name}") from None
        prepared = _public(prepared)
        _check_key("key", prepared, name)
    return Key(prepared, names)


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


def some_keys_of(document: object, wanted: tuple[str, ...] | None) -> Keys:
    """The keys of a JWKS to begin with; ConfigError where there are none, or two that exclude each
    other."""
    keys, faults = keys_of(document, wanted)
    for fault in faults:
        if not keys or isinstance(fault, _Ambiguous):
            raise ConfigError(str(fault))
        log.warning("a key is not used: %s", fault, kind=f"a key is not used: {fault}")
    if not keys:
        raise ConfigError("the JWKS has no key for these algorithms")
    return keys


def keys_of(document: object, wanted: tuple[str, ...] | None) -> tuple[Keys, list[ConfigError]]:
    """The keys of a JWKS, and why others of it cannot be used; ConfigError for what is no JWKS.

    A key that cannot be used counts as if it were not there (RFC 7517 section 5).
    """
    members = document.get("keys") if isinstance(document, Mapping) else None
    if not isinstance(members, (list, tuple)):
        raise ConfigError("a JWKS must be an object with a list 'keys'")
    keys: Keys = {}
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


def _add_key(keys: Keys, which: str, member: Mapping[str, Any], names: tuple[str, ...]) -> None:
    data = {name: member[name] for name in _PUBLIC_MEMBERS if name in member}
    try:
        key = _public(pyjwt(False).get_algorithm_by_name(names[0]).from_jwk(data))
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
    keys[kid] = (*keys.get(kid, ()), Key(key, names))


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
