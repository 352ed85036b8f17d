"""API keys: which there are, and whose a request shows.

The hub keeps the SHA-256 of each key, and compares that of a request's key with all of them, each
in constant time: how long it takes tells nothing about a key, nor which one is near.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Mapping
from hashlib import sha256

from wsc_fast.errors import ConfigError
from wsc_fast.upgrade.request import Request

Keys = str | Iterable[str] | Mapping[str, str]

# The characters of a key, and how many keys a hub may have: each request looks at all of them.
SHORTEST, LONGEST, MOST_KEYS = 16, 512, 1_000
# As a header can carry it.
_KEY = re.compile(r"[!-~]+\Z").match
_NAME = re.compile(r"[ -~]{1,64}\Z").match
_ADVICE = (
    "write hub.enable_api(keys=os.environ['API_KEY']), or keys={'billing': ...} for one of each "
    'caller; python -c "import secrets; print(secrets.token_urlsafe(32))" makes one'
)


class KeyRing:
    """The API keys of one hub.

    Args:
        keys: a key, several, or a mapping of names to keys. Without names they are "1", "2", ..

    Raises:
        ConfigError: there is none, or one cannot be used. Its text does not hold the key.

    Thread-safety: any thread.
    """

    def __init__(self, keys: Keys) -> None:
        named = _named(keys)
        if not 0 < len(named) <= MOST_KEYS:
            raise ConfigError(f"keys must be 1 to {MOST_KEYS}, not {len(named)}: {_ADVICE}")
        self._digests: dict[str, bytes] = {}
        for name, key in named.items():
            digest = _digest(_checked(name, key))
            if digest in self._digests.values():
                raise ConfigError(f"keys: the key {name!r} is there under another name too")
            self._digests[name] = digest

    def name_of(self, key: str) -> str | None:
        """The name of a key; None: it is none of these."""
        shown = _digest(key)
        found = None
        for name, digest in self._digests.items():
            if hmac.compare_digest(digest, shown):
                found = name
        return found


def key_of(request: Request) -> str | None:
    """The key that a request shows: a bearer token, or the header X-API-Key."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    return request.headers.get("X-API-Key")


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()


def _named(keys: object) -> dict[str, object]:
    if isinstance(keys, str):
        return {"1": keys} if keys else {}
    if isinstance(keys, Mapping):
        return dict(keys)
    if isinstance(keys, Iterable) and not isinstance(keys, (bytes, bytearray)):
        return {str(number): key for number, key in enumerate(keys, 1)}
    raise ConfigError(
        f"keys must be API keys, as a str, several or a mapping, not {type(keys).__name__}: "
        f"{_ADVICE}"
    )


def _checked(name: object, key: object) -> str:
    if not isinstance(name, str) or not _NAME(name):
        raise ConfigError(
            f"keys: the name of a key must be 1 to 64 visible ASCII characters, not {name!a}"
        )
    if not isinstance(key, str):
        raise ConfigError(f"keys: the key {name!r} must be a str, not {type(key).__name__}")
    if not SHORTEST <= len(key) <= LONGEST:
        raise ConfigError(
            f"keys: a key must have {SHORTEST} to {LONGEST} characters, and {name!r} has "
            f"{len(key)}: {_ADVICE}"
        )
    if not _KEY(key):
        raise ConfigError(f"keys: the key {name!r} must be visible ASCII without spaces")
    return key
