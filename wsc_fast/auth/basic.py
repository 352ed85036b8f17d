"""BasicAuthenticator: names and passwords by HTTP Basic (RFC 7617), for operators' pages."""

from __future__ import annotations

import binascii
import hashlib
import hmac
from base64 import b64decode
from collections.abc import Mapping

from wsc_fast.errors import ConfigError, ValidationError
from wsc_fast.upgrade.identity import Identity, check_identity
from wsc_fast.upgrade.request import Request, head_of

# Characters of a password. A short one can be guessed, a long one costs time to hash.
PASSWORD_MIN, PASSWORD_MAX = 12, 512
# Characters of a header that is looked at.
_MOST_HEADER = 4_096
_ADVICE = (
    "write BasicAuthenticator({'ann': os.environ['CONSOLE_PASSWORD']}); "
    'python -c "import secrets; print(secrets.token_urlsafe(16))" makes a password'
)


class BasicAuthenticator:
    """Authenticates by a name and a password that the browser asks for: HTTP Basic, RFC 7617.

    It is made for `Hub.enable_console`. It keeps digests (SHA-256), not the passwords, and compares
    in constant time, whether or not there is such a name. The password goes with each request as it
    is: over TLS it is safe from others.

    Args:
        passwords: name -> password; copied. A name can be a user id and has no colon. A password
            has 12 to 512 characters, and there is no default.
        realm: the name of the protected place, which browsers may show.

    Attributes:
        challenge: the header WWW-Authenticate of a 401.

    Raises:
        ConfigError: there are no passwords, one is too short, too long or the name itself, or a
            name cannot be used. No text shows a password.

    Thread-safety: any thread; nothing changes after the construction.
    """

    def __init__(self, passwords: Mapping[str, str], *, realm: str = "wsc_fast") -> None:
        if not isinstance(passwords, Mapping):
            raise ConfigError(
                f"passwords must be a mapping of names to passwords, not "
                f"{type(passwords).__name__}: {_ADVICE}"
            )
        if not passwords:
            raise ConfigError(f"passwords is empty: nobody could log in; {_ADVICE}")
        if not isinstance(realm, str) or not realm.isascii() or not realm.isprintable():
            raise ConfigError(f"realm must be visible ASCII, not {realm!a}")
        if '"' in realm or "\\" in realm:
            raise ConfigError(f"realm must have neither quotes nor backslashes, not {realm!a}")
        self._known = {name: _checked(name, word) for name, word in passwords.items()}
        # A name that is not there takes as long as one that is.
        self._nobody = bytes(hashlib.sha256().digest_size)
        self.challenge: str = f'Basic realm="{realm}", charset="UTF-8"'

    def __call__(self, request: Request) -> Identity | None:
        """The identity whose name and password a request carries.

        Args:
            request: any.

        Returns:
            Identity | None: None where it carries none, or they are not good.

        Thread-safety: any thread.
        """
        sent = head_of(request).headers.getall("Authorization", [])
        if len(sent) != 1:
            request.refusal = "several passwords" if sent else "no password"
            return None
        name, password = _read(sent[0])
        known = self._known.get(name, self._nobody)
        if not hmac.compare_digest(known, _digest(password)):
            request.refusal = "the name or the password is wrong"
            return None
        return Identity(name)


def _read(header: str) -> tuple[str, str]:
    """Name and password of a header; empty ones where it has none."""
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "basic" or len(header) > _MOST_HEADER:
        return "", ""
    try:
        decoded = b64decode(text.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return "", ""
    name, _, password = decoded.partition(":")
    return name, password


def _digest(password: str) -> bytes:
    return hashlib.sha256(password.encode("utf-8", "surrogatepass")).digest()


def _checked(name: object, password: object) -> bytes:
    """The digest of a password that can be one."""
    try:
        check_identity(Identity(name))  # type: ignore[arg-type]
    except ValidationError as error:
        raise ConfigError(f"passwords: {error}") from None
    assert isinstance(name, str)
    if ":" in name:
        raise ConfigError(f"passwords: a name has no colon (RFC 7617 section 2), not {name!a}")
    if not isinstance(password, str):
        raise ConfigError(
            f"passwords: that of {name!a} must be a str, not {type(password).__name__}: {_ADVICE}"
        )
    if not PASSWORD_MIN <= len(password) <= PASSWORD_MAX:
        raise ConfigError(
            f"passwords: that of {name!a} must have {PASSWORD_MIN} to {PASSWORD_MAX} characters, "
            f"it has {len(password)}: {_ADVICE}"
        )
    if password == name or len(set(password)) < 4:
        raise ConfigError(f"passwords: that of {name!a} is easily guessed: {_ADVICE}")
    return _digest(password)
