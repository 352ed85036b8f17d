"""BasicAuthenticator: which names and passwords it takes, and which it cannot be made with."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from wsc_fast import BasicAuthenticator, ConfigError, Identity, Request
from wsc_fast._core.handshake import RequestHead

PASSWORD = "correct horse battery"
known = BasicAuthenticator({"ann": PASSWORD, "bob": "grüße an alle hier"})


def request(*headers: str) -> Request:
    lines = ["GET /console HTTP/1.1", "Host: a", *(f"Authorization: {each}" for each in headers)]
    return Request(RequestHead("\r\n".join([*lines, ""]).encode("latin-1")), "192.0.2.1")


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (basic(f"ann:{PASSWORD}"), "ann"),
        (basic(f"ann:{PASSWORD}").replace("Basic", "bAsIc"), "ann"),
        (basic("bob:grüße an alle hier"), "bob"),
    ],
)
def test_a_good_password_is_taken(header: str, name: str) -> None:
    assert known(request(header)) == Identity(name)


@pytest.mark.parametrize(
    "header",
    [
        basic(f"ann:{PASSWORD}x"),
        basic(f"bob:{PASSWORD}"),
        basic(f"eve:{PASSWORD}"),
        basic("ann:"),
        basic("ann"),
        basic(""),
        basic(f":{PASSWORD}"),
        "Basic",
        "Basic !!!",
        "Basic /w==",  # no UTF-8
        f"Bearer {PASSWORD}",
        f"Basic {base64.b64encode(b'a' * 5000).decode()}",
    ],
)
def test_anything_else_is_refused(header: str) -> None:
    asked = request(header)
    assert known(asked) is None
    assert asked.refusal == "the name or the password is wrong"


def test_none_and_several_are_refused() -> None:
    for asked, why in ((request(), "no"), (request(basic("a:b"), basic("a:b")), "several")):
        assert known(asked) is None
        assert str(asked.refusal).startswith(f"{why} password")


@pytest.mark.parametrize(
    ("passwords", "why"),
    [
        ({}, "passwords is empty"),
        ("ann:secret", "must be a mapping"),
        ({"ann": "short"}, "12 to 512 characters, it has 5"),
        ({"ann": "x" * 513}, "12 to 512 characters, it has 513"),
        ({"ann": "aaaaaaaaaaaaaaaa"}, "easily guessed"),
        ({"operator-of-all": "operator-of-all"}, "easily guessed"),
        ({"ann": None}, "must be a str, not NoneType"),
        ({"ann": b"correct horse battery"}, "must be a str, not bytes"),
        ({"": PASSWORD}, "user"),
        ({"a:b": PASSWORD}, "no colon"),
        ({7: PASSWORD}, "user"),
    ],
)
def test_passwords_that_cannot_be_used_are_refused(passwords: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        BasicAuthenticator(passwords)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("realm", ["ü", 'a"b', "a\\b", "a\r\nb", 7])
def test_a_realm_that_a_header_cannot_carry_is_refused(realm: Any) -> None:
    with pytest.raises(ConfigError, match="realm"):
        BasicAuthenticator({"ann": PASSWORD}, realm=realm)


def test_the_challenge_names_the_realm() -> None:
    made = BasicAuthenticator({"ann": PASSWORD}, realm="my hub")
    assert made.challenge == 'Basic realm="my hub", charset="UTF-8"'
