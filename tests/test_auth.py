"""The ready-made authenticators: tokens that they take and refuse, and that they say nothing."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import jwt
import pytest
import websockets
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from tests.support import exchange, only_client
from wsc_fast import Client, ConfigError, Hub, HubConfig, Identity, Request, ValidationError
from wsc_fast._core.handshake import RequestHead
from wsc_fast.auth import JWTAuthenticator, TokenAuthenticator, jwts, reader
from wsc_fast.auth import key_file as jwks_file
from wsc_fast.auth import tokens as static_tokens
from wsc_fast.auth.jwts import HEADER_MAX
from wsc_fast.auth.reader import TOKEN_MAX
from wsc_fast.log import log
from wsc_fast.testing import CLOSE, RawClient, eventually, running, uri, wait_until
from wsc_fast.upgrade.negotiation import choose_subprotocol

TOKEN = "Rk3sVq8yT0uWz1xB-static"
OTHER = "another-token-that-is-known"
SECRET = b"0123456789abcdef" * 4


def request(
    *headers: tuple[str, str], path: str = "/ws", token: str | None = None, raw: bytes = b""
) -> Request:
    """A request with these headers; `token` comes as `Authorization: Bearer`."""
    lines = [f"GET {path} HTTP/1.1", "Host: a"]
    lines += [f"{name}: {value}" for name, value in headers]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    return Request(RequestHead("\r\n".join([*lines, ""]).encode("latin-1") + raw), "192.0.2.1")


def user_of(authenticator: Callable[[Request], Identity | None], request: Request) -> str | None:
    identity = authenticator(request)
    return None if identity is None else identity.user_id


def claims(**changed: Any) -> dict[str, Any]:
    """Claims of ann for ten minutes; None takes one out."""
    made = {"sub": "ann", "exp": int(time.time()) + 600, **changed}
    return {name: value for name, value in made.items() if value is not None}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed_by_hand(
    payload: object, secret: bytes, header: object = None, digest: Any = hashlib.sha256
) -> str:
    """A JWS with an HMAC, of any header and payload."""
    header = {"alg": "HS256", "typ": "JWT"} if header is None else header
    parts = [
        part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)
    ]
    text = ".".join(b64(part) for part in parts)
    return f"{text}.{b64(hmac.new(secret, text.encode(), digest).digest())}"


PRIVATE: dict[str, Any] = {
    "RSA": rsa.generate_private_key(65537, 2048),
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "P-521": ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "Ed448": ed448.Ed448PrivateKey.generate(),
}
# (algorithm, name of the key)
ASYMMETRIC = [
    *((name, "RSA") for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
    *(("ES256", "P-256"), ("ES384", "P-384"), ("ES512", "P-521")),
    *(("EdDSA", "Ed25519"), ("EdDSA", "Ed448")),
]
SYMMETRIC = ["HS256", "HS384", "HS512"]


def pem(key: Any) -> str:
    """The public half."""
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return str(public.decode())


def private_pem(key: Any) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def jwk(key: Any, kid: str | None = None, algorithm: str = "RS256", **more: Any) -> dict[str, Any]:
    """The public half (or the secret), as a member of a JWKS."""
    key = key if isinstance(key, bytes) else key.public_key()
    made = jwt.get_algorithm_by_name(algorithm).to_jwk(key, as_dict=True)
    made.pop("key_ops", None)
    return {**made, **({} if kid is None else {"kid": kid}), **more}


def hs256(**options: Any) -> JWTAuthenticator:
    return JWTAuthenticator(SECRET, algorithms=["HS256"], **options)


def token_of(**changed: Any) -> str:
    """A token that `hs256()` takes, unless the claims are changed."""
    return jwt.encode(claims(**changed), SECRET, "HS256")


async def status(hub: Hub, *headers: tuple[str, str], path: str = "/ws") -> int:
    """The status of the answer to an upgrade that is refused."""
    answer = await exchange(hub, RawClient.request(hub, path, headers))
    return int(answer.split(b" ")[1])


# --- where a token comes from ---


async def test_programs_send_a_header() -> None:
    hub = Hub(authenticate=TokenAuthenticator({TOKEN: "ann"}))
    async with running(hub):
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with websockets.connect(uri(hub), additional_headers=headers):
            await eventually(lambda: hub.get_connected_clients() == 1)
            assert only_client(hub).user_id == "ann"
        assert await status(hub) == 401
        assert await status(hub, ("Authorization", f"Bearer {OTHER}")) == 401
        assert hub.get_stats().rejected["auth"] == 2
        assert hub.get_stats().callback_errors == 0


async def test_browsers_send_a_cookie() -> None:
    hub = Hub(authenticate=TokenAuthenticator({TOKEN: "ann"}, cookie="session"))
    async with running(hub):
        headers = {"Cookie": f'lang=en; session="{TOKEN}"; theme=dark'}
        async with websockets.connect(uri(hub), additional_headers=headers):
            await eventually(lambda: hub.get_connected_clients() == 1)
            assert only_client(hub).user_id == "ann"
        assert await status(hub, ("Cookie", f"Session={TOKEN}")) == 401
        assert await status(hub, ("Cookie", f"xsession={TOKEN}")) == 401


async def test_browsers_offer_it_beside_a_subprotocol() -> None:
    hub = Hub(HubConfig(subprotocols=("chat",)), authenticate=hs256())
    async with running(hub):
        offers: list[Any] = [f"bearer.{token_of()}", "chat"]
        async with websockets.connect(uri(hub), subprotocols=offers) as client:
            assert client.subprotocol == "chat"
            await eventually(lambda: hub.get_connected_clients() == 1)
            assert only_client(hub).user_id == "ann"
            assert only_client(hub).subprotocol == "chat"


@pytest.mark.parametrize("supported", [(), ("chat",), ("bearer", "chat"), ("bearer.", "v1")])
@pytest.mark.parametrize(
    "offers", ["bearer.{}", "bearer.{}, chat", "chat,bearer.{}", "v1 ,bearer.{}"]
)
async def test_the_bearer_entry_is_never_in_the_answer(
    supported: tuple[str, ...], offers: str
) -> None:
    hub = Hub(HubConfig(subprotocols=supported), authenticate=TokenAuthenticator({TOKEN: "ann"}))
    async with running(hub):
        headers = [("Sec-WebSocket-Protocol", offers.format(TOKEN))]
        with await RawClient.open(hub, headers=headers) as client:
            assert b"bearer" not in client.response.lower()
            assert TOKEN.encode() not in client.response
        # A refusal does not contain it either.
        headers = [("Sec-WebSocket-Protocol", offers.format(OTHER))]
        answer = await exchange(hub, RawClient.request(hub, "/ws", headers))
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert OTHER.encode() not in answer


def test_the_chosen_subprotocol_is_the_servers_name() -> None:
    assert choose_subprotocol(("chat",), [f"bearer.{TOKEN}"]) is None
    assert choose_subprotocol(("chat", "bearer."), [f"bearer.{TOKEN},chat"]) == "chat"


async def test_a_query_parameter_counts_only_where_it_is_switched_on() -> None:
    hub = Hub(authenticate=TokenAuthenticator({TOKEN: "ann"}))
    async with running(hub):
        for name in ("token", "access_token", "bearer", "authorization"):
            assert await status(hub, path=f"/ws?{name}={TOKEN}") == 401
    hub = Hub(authenticate=TokenAuthenticator({TOKEN: "ann"}, query="token"))
    async with running(hub):
        async with websockets.connect(uri(hub, f"/ws?a=b&token={TOKEN}")):
            await eventually(lambda: hub.get_connected_clients() == 1)
            assert only_client(hub).user_id == "ann"
        assert await status(hub, path=f"/ws?access_token={TOKEN}") == 401


def test_places_that_are_off_are_not_looked_at() -> None:
    only_cookie = TokenAuthenticator({TOKEN: "ann"}, cookie="t", header=False, subprotocol=False)
    assert user_of(only_cookie, request(token=TOKEN)) is None
    offer = ("Sec-WebSocket-Protocol", f"bearer.{TOKEN}")
    assert user_of(only_cookie, request(offer)) is None
    assert user_of(only_cookie, request(("Cookie", f"t={TOKEN}"), offer, token=OTHER)) == "ann"
    assert user_of(TokenAuthenticator({TOKEN: "ann"}), request(("Cookie", f"t={TOKEN}"))) is None


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer ", "Bearer\t "])
def test_the_scheme_is_in_any_case(scheme: str) -> None:
    sent = request(("authorization", f"{scheme} {TOKEN} "))
    # A tab is no separator between a scheme and what follows (RFC 9110 section 11.4).
    expected = None if "\t" in scheme else "ann"
    assert user_of(TokenAuthenticator({TOKEN: "ann"}), sent) == expected


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}", f"Bearer:{TOKEN}", f"Bear {TOKEN}"]
)
def test_another_scheme_is_no_token(value: str) -> None:
    assert user_of(TokenAuthenticator({TOKEN: "ann"}), request(("Authorization", value))) is None


EVERYWHERE = TokenAuthenticator({TOKEN: "ann", OTHER: "bob"}, cookie="t", query="t")
PLACES: dict[str, Callable[[str], tuple[tuple[str, str], str]]] = {
    "header": lambda token: (("Authorization", f"Bearer {token}"), ""),
    "cookie": lambda token: (("Cookie", f"t={token}"), ""),
    "subprotocol": lambda token: (("Sec-WebSocket-Protocol", f"bearer.{token}"), ""),
    "query": lambda token: (("X-None", "1"), f"t={token}"),
}


@pytest.mark.parametrize("first", PLACES)
@pytest.mark.parametrize("second", PLACES)
def test_two_different_tokens_are_refused_and_one_twice_is_not(first: str, second: str) -> None:
    for token, expected in ((OTHER, None), (TOKEN, "ann"), ("wrong-" + TOKEN, None)):
        (header, query), (other_header, other_query) = PLACES[first](TOKEN), PLACES[second](token)
        path = f"/ws?{query}&{other_query}"
        assert user_of(EVERYWHERE, request(header, other_header, path=path)) == expected


def test_two_in_one_line_are_two() -> None:
    for header in (
        ("Cookie", f"t={TOKEN}; t={OTHER}"),
        ("Sec-WebSocket-Protocol", f"bearer.{TOKEN},chat,bearer.{OTHER}"),
    ):
        assert user_of(EVERYWHERE, request(header)) is None
    assert user_of(EVERYWHERE, request(path=f"/ws?t={TOKEN}&t={OTHER}")) is None
    # A list is not what the header is made for.
    assert user_of(EVERYWHERE, request(token=f"{TOKEN}, Bearer {TOKEN}")) is None


def test_an_emptied_cookie_is_no_token() -> None:
    for value in ("t=", 't=""', "t", "t=; u=1"):
        assert user_of(EVERYWHERE, request(("Cookie", value), token=TOKEN)) == "ann"
        assert user_of(EVERYWHERE, request(("Cookie", value))) is None


async def test_two_different_tokens_get_401() -> None:
    hub = Hub(authenticate=EVERYWHERE)
    async with running(hub):
        headers = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", f"Bearer {OTHER}")]
        assert await status(hub, *headers) == 401


class Untouchable:
    """Fails any computation."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is used")


def test_an_over_long_token_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = "x" * TOKEN_MAX
    static = TokenAuthenticator({longest: "ann"}, cookie="t", query="t")
    web = hs256(cookie="t", query="t")
    assert user_of(static, request(token=longest)) == "ann"
    for module, names in (
        (reader, ("VISIBLE",)),
        (static_tokens, ("VISIBLE", "hashlib", "hmac")),
        (jwts, ("_COMPACT_JWS", "json", "base64")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, Untouchable())
    for place in PLACES.values():
        header, query = place(longest + "x")
        for authenticator in (static, web):
            assert user_of(authenticator, request(header, path=f"/ws?{query}")) is None


@pytest.mark.parametrize("token", [TOKEN + "\xff", TOKEN + " x", TOKEN + "\tx", "\xe9" * 20])
def test_a_token_that_is_no_visible_ascii_is_refused(token: str) -> None:
    assert user_of(EVERYWHERE, request(token=token)) is None
    assert user_of(hs256(), request(token=token)) is None


@pytest.mark.parametrize("query", ["t=%ff%fe", "t=%00", "t=%F0%9F%98%80", "t=a+b", "t=%ED%A0%80"])
def test_so_is_one_that_a_query_decodes_to(query: str) -> None:
    assert user_of(EVERYWHERE, request(path=f"/ws?{query}")) is None
    assert user_of(hs256(query="t"), request(path=f"/ws?{query}")) is None


@pytest.mark.parametrize(
    "options",
    [
        {"header": False, "subprotocol": False},
        {"cookie": ""},
        {"cookie": "a b"},
        {"cookie": "a=b"},
        {"cookie": True},
        {"query": ""},
        {"query": 1},
        {"header": "yes"},
        {"subprotocol": None},
    ],
    ids=str,
)
def test_a_place_that_cannot_be_is_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TokenAuthenticator({TOKEN: "ann"}, **options)
    with pytest.raises(ConfigError):
        hs256(**options)


# --- B7: only the Identity counts ---


@pytest.mark.fault(number="B7")
@pytest.mark.parametrize("kind", ["static", "jwt"])
async def test_a_client_cannot_choose_who_it_is(kind: str) -> None:
    static = kind == "static"
    authenticator = TokenAuthenticator({TOKEN: "ann"}) if static else hs256()
    # Claims that are not the user's are none of the hub's either.
    token = TOKEN if static else token_of(client_id="boss", user_id="boss", user_data={"admin": 1})
    hub = Hub(authenticate=authenticator)
    received: list[Client] = []
    hub.on_message_received(lambda client, message: received.append(client))
    async with running(hub):
        headers = [
            ("Authorization", f"Bearer {token}"),
            ("X-User-Id", "boss"),
            ("X-Client-Id", "boss"),
            ("Cookie", "client_id=boss; user_id=boss"),
            ("Sec-WebSocket-Protocol", "boss"),
        ]
        path = "/ws?client_id=boss&user_id=boss&user=boss&sub=boss&id=boss"
        with await RawClient.open(hub, path, headers=headers) as raw:
            await raw.send(1, b'{"from":"boss","user_id":"boss"}')
            await eventually(lambda: received)
            (client,) = received
            assert client.user_id == "ann"
            assert client.id != "boss"
            assert client.user_data == {}
            assert hub.get_clients_by_user("boss") == []


# --- static tokens ---


def test_a_token_stands_for_a_user_or_an_identity() -> None:
    identity = Identity("bob", "bob/phone", {"admin": True})
    authenticator = TokenAuthenticator({TOKEN: "ann", OTHER: identity})
    assert authenticator(request(token=TOKEN)) == Identity("ann")
    assert authenticator(request(token=OTHER)) is identity
    for wrong in (TOKEN[:-1], TOKEN + "x", TOKEN.upper(), TOKEN[::-1], "x"):
        assert authenticator(request(token=wrong)) is None


def test_the_mapping_is_copied_and_the_tokens_are_not_kept() -> None:
    tokens: dict[str, Identity | str] = {TOKEN: "ann"}
    authenticator = TokenAuthenticator(tokens)
    tokens[OTHER] = "bob"
    assert authenticator(request(token=OTHER)) is None
    assert TOKEN not in repr(vars(authenticator))


def test_an_identity_that_has_expired_is_refused() -> None:
    now = time.time()
    authenticator = TokenAuthenticator(
        {TOKEN: Identity("ann", expires_at=now + 600), OTHER: Identity("bob", expires_at=now - 1)}
    )
    assert user_of(authenticator, request(token=TOKEN)) == "ann"
    assert user_of(authenticator, request(token=OTHER)) is None


def test_digests_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    class Watched:
        @staticmethod
        def compare_digest(a: bytes, b: bytes) -> bool:
            compared.append((len(a), len(b)))
            return hmac.compare_digest(a, b)

    monkeypatch.setattr(static_tokens, "hmac", Watched)
    authenticator = TokenAuthenticator({TOKEN: "ann"})
    assert user_of(authenticator, request(token=TOKEN)) == "ann"
    assert user_of(authenticator, request(token=OTHER)) is None
    # Known or not, long or short: the same work.
    assert user_of(authenticator, request(token="x")) is None
    assert compared == [(32, 32)] * 3


SHORT = "hunter2-hunter2"


@pytest.mark.parametrize(
    "tokens",
    [
        {},
        {"": "ann"},
        {SHORT: "ann"},
        {TOKEN: "ann", SHORT: "bob"},
        {"x" * (TOKEN_MAX + 1): "ann"},
        {TOKEN + " x": "ann"},
        {TOKEN + "\xe9": "ann"},
        {TOKEN + "\n": "ann"},
        {TOKEN.encode(): "ann"},
        {TOKEN: ""},
        {TOKEN: "a\x00b"},
        {TOKEN: None},
        {TOKEN: 7},
        {TOKEN: Identity("")},
        {TOKEN: Identity("ann", "")},
        {TOKEN: Identity("ann", expires_at=float("nan"))},
        {TOKEN: Identity("ann", expires_at="soon")},  # type: ignore[arg-type]
        [TOKEN],
        TOKEN,
        None,
    ],
    ids=range(20),
)
def test_tokens_that_cannot_be_are_refused_without_showing_one(tokens: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        TokenAuthenticator(tokens)
    for secret in (TOKEN, SHORT, "x" * 20):
        assert secret not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


# --- JWTs: every family of algorithms ---


@pytest.mark.parametrize("algorithm", SYMMETRIC)
def test_a_secret(algorithm: str) -> None:
    authenticator = JWTAuthenticator(SECRET, algorithms=[algorithm])
    token = jwt.encode(claims(), SECRET, algorithm)
    assert user_of(authenticator, request(token=token)) == "ann"
    assert (
        user_of(authenticator, request(token=jwt.encode(claims(), SECRET * 2, algorithm))) is None
    )
    for other in set(SYMMETRIC) - {algorithm}:
        token = jwt.encode(claims(), SECRET, other)
        assert user_of(authenticator, request(token=token)) is None


def test_a_secret_may_be_text() -> None:
    authenticator = JWTAuthenticator(SECRET.decode(), algorithms=["HS256"])
    assert user_of(authenticator, request(token=token_of())) == "ann"


@pytest.mark.parametrize(("algorithm", "name"), ASYMMETRIC)
def test_a_public_key(algorithm: str, name: str) -> None:
    key = PRIVATE[name]
    token = jwt.encode(claims(), key, algorithm)
    other = jwt.encode(claims(), another(key), algorithm)
    for given_key in (pem(key), pem(key).encode(), key.public_key(), key, private_pem(key)):
        authenticator = JWTAuthenticator(given_key, algorithms=[algorithm])
        assert user_of(authenticator, request(token=token)) == "ann"
        assert user_of(authenticator, request(token=other)) is None
        # Not even in memory.
        assert authenticator._key is not None
        assert not hasattr(authenticator._key.key, "private_bytes")


def another(key: Any) -> Any:
    """A new key of the same kind."""
    if isinstance(key, rsa.RSAPrivateKey):
        return rsa.generate_private_key(65537, 2048)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return ec.generate_private_key(key.curve)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return ed25519.Ed25519PrivateKey.generate()
    return ed448.Ed448PrivateKey.generate()


@pytest.mark.parametrize(("algorithm", "name"), [*ASYMMETRIC, *((name, "") for name in SYMMETRIC)])
@pytest.mark.parametrize("names_it", [True, False])
def test_a_jwks_of_each_family(algorithm: str, name: str, names_it: bool) -> None:
    key = PRIVATE[name] if name else SECRET
    member = jwk(key, "k1", algorithm, **({"alg": algorithm} if names_it else {}))
    authenticator = JWTAuthenticator(
        jwks={"keys": [member]}, algorithms=None if names_it else [algorithm]
    )
    token = jwt.encode(claims(), key, algorithm, headers={"kid": "k1"})
    assert user_of(authenticator, request(token=token)) == "ann"
    # A set with one key needs no kid.
    token = jwt.encode(claims(), key, algorithm)
    assert user_of(authenticator, request(token=token)) == "ann"
    token = jwt.encode(claims(), key, algorithm, headers={"kid": "k2"})
    assert user_of(authenticator, request(token=token)) is None


async def test_over_the_wire_with_every_family() -> None:
    for algorithm, name in [("HS256", ""), *ASYMMETRIC]:
        key = PRIVATE[name] if name else SECRET
        public = key.public_key() if name else key
        hub = Hub(authenticate=JWTAuthenticator(public, algorithms=[algorithm]))
        async with running(hub):
            token = jwt.encode(claims(), key, algorithm)
            headers = {"Authorization": f"Bearer {token}"}
            async with websockets.connect(uri(hub), additional_headers=headers):
                await eventually(lambda hub=hub: hub.get_connected_clients() == 1)
                assert only_client(hub).user_id == "ann"
            head, payload, signature = token.split(".")
            forged = f"{head}.{b64(json.dumps(claims(sub='bob')).encode())}.{signature}"
            assert await status(hub, ("Authorization", f"Bearer {forged}")) == 401
            assert payload not in forged


# --- what makes a token bad ---


def bad_tokens() -> Iterator[tuple[str, str]]:
    """Tokens that `strict` refuses, by name."""
    now = int(time.time())
    good = {"aud": "hub", "iss": "https://issuer"}
    for name, changed in {
        "expired": {"exp": now - 1},
        "expired long ago": {"exp": 0},
        "expired before the epoch": {"exp": -1e300},
        "not yet valid": {"nbf": now + 36_000},
        "issued in the future": {"iat": now + 36_000},
        "wrong aud": {"aud": "hub2"},
        "wrong auds": {"aud": ["a", "b"]},
        "no aud": {"aud": None},
        "empty aud": {"aud": []},
        "odd aud": {"aud": [["hub"]]},
        "aud object": {"aud": {"hub": 1}},
        "wrong iss": {"iss": "https://issuer.evil"},
        "part of iss": {"iss": "https"},
        "no iss": {"iss": None},
        "odd iss": {"iss": ["https://issuer"]},
        "no exp": {"exp": None},
        "exp text": {"exp": str(now + 600)},
        "exp words": {"exp": "tomorrow"},
        "exp true": {"exp": True},
        "exp list": {"exp": [now + 600]},
        "exp infinite": {"exp": float("inf")},
        "exp nan": {"exp": float("nan")},
        "exp too big for a float": {"exp": 10**400},
        "nbf text": {"nbf": "0"},
        "iat true": {"iat": True},
        "no sub": {"sub": None},
        "empty sub": {"sub": ""},
        "sub number": {"sub": 7},
        "sub object": {"sub": {"a": 1}},
        "sub too long": {"sub": "x" * 257},
        "sub control": {"sub": "a\r\nb"},
        "sub surrogate": {"sub": "a\ud800"},
    }.items():
        yield name, signed_by_hand(claims(**{**good, **changed}), SECRET)
    payload = claims(**good)
    yield "exp null", signed_by_hand({**payload, "exp": None}, SECRET)
    yield "wrong key", signed_by_hand(payload, SECRET[::-1])
    yield "empty key", signed_by_hand(payload, b"")
    for algorithm in ("none", "None", "NONE", "nOnE", "", None, "HS512", "RS256", ["HS256"], {}):
        header = {"alg": algorithm, "typ": "JWT"}
        yield f"alg {algorithm}", signed_by_hand(payload, SECRET, header)
        body = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(payload).encode())}"
        yield f"alg {algorithm}, not signed", body + "."
        yield f"alg {algorithm}, no third part", body
    yield "no alg", signed_by_hand(payload, SECRET, {"typ": "JWT"})
    for name, more in {
        "crit": {"crit": ["exp"], "exp": 1},
        "crit empty": {"crit": []},
        "b64": {"b64": False, "crit": ["b64"]},
        "b64 alone": {"b64": False},
    }.items():
        yield name, signed_by_hand(payload, SECRET, {"alg": "HS256", **more})
    for name, document in {
        "list": b"[]",
        "text": b'"x"',
        "null": b"null",
        "number": b"1",
        "no JSON": b"{",
        "no UTF-8": b'{"sub":"\xff"}',
        "nested": b"[" * 3000 + b"]" * 3000,
        "many digits": b'{"exp":' + b"9" * 5000 + b"}",
    }.items():
        yield f"payload {name}", signed_by_hand(document, SECRET)
        yield f"header {name}", signed_by_hand(payload, SECRET, document)
    token = signed_by_hand(payload, SECRET)
    head, body, signature = token.split(".")
    yield (
        "tampered payload",
        f"{head}.{b64(json.dumps({**payload, 'sub': 'bob'}).encode())}.{signature}",
    )
    yield "no signature", f"{head}.{body}."
    yield "half a signature", f"{head}.{body}.{signature[:20]}"
    yield "longer signature", f"{token}AAAA"
    yield "four parts", f"{token}.{signature}"
    yield "five parts", f"{token}.{signature}.{signature}"
    yield "no header", f".{body}.{signature}"
    yield "padded", f"{token}="
    yield "other alphabet", f"{head}.{body}.{'+/' * 22}"
    yield "kid object", signed_by_hand(payload, SECRET, {"alg": "HS256", "kid": {"a": 1}})
    yield "kid number", signed_by_hand(payload, SECRET, {"alg": "HS256", "kid": 1})


def strict(**options: Any) -> JWTAuthenticator:
    return hs256(audience="hub", issuer="https://issuer", **options)


def test_a_header_has_a_bound_of_its_own() -> None:
    # No client needs a larger one, and it is read before the signature tells whose it is.
    size = HEADER_MAX * 3 // 4
    for length, user in ((size, "ann"), (size + 1, None)):
        header = b'{"alg":"HS256"}'.ljust(length)
        token = signed_by_hand(claims(), SECRET, header)
        upgrade = request(token=token)
        assert user_of(hs256(), upgrade) == user
    assert upgrade.refusal == "the header of the token is too long"


def test_the_good_one_is_taken() -> None:
    token = token_of(aud="hub", iss="https://issuer", nbf=0, iat=time.time() - 1)
    assert user_of(strict(), request(token=token)) == "ann"


BAD = dict(bad_tokens())


@pytest.mark.parametrize("name", BAD)
def test_a_bad_token_is_refused_and_nothing_raises(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    upgrade = request(token=BAD[name])
    assert strict()(upgrade) is None
    assert caplog.records == []  # the hub says it, bounded
    said = upgrade.refusal
    assert said
    for part in BAD[name].split("."):
        assert not part or part not in said
    assert "ann" not in said
    assert "issuer" not in said


def test_times_have_a_leeway_and_the_identity_ends_with_it() -> None:
    now = time.time()
    for changed in ({"exp": int(now) - 5}, {"nbf": int(now) + 8}, {"iat": int(now) + 8}):
        token = token_of(**changed)
        assert user_of(hs256(), request(token=token)) is None
        assert user_of(hs256(leeway=10), request(token=token)) == "ann"
        assert user_of(hs256(leeway=2.5), request(token=token)) is None
    identity = hs256(leeway=10)(request(token=token_of(exp=int(now) - 5)))
    assert identity == Identity("ann", expires_at=int(now) + 5.0)


def test_exp_is_when_the_identity_ends() -> None:
    ends = int(time.time()) + 600
    assert hs256()(request(token=token_of(exp=ends))) == Identity("ann", expires_at=ends)
    # As PyJWT reads it, so that a token and what is made of it end at once.
    assert hs256()(request(token=token_of(exp=ends + 0.9))) == Identity("ann", expires_at=ends)
    far = hs256()(request(token=token_of(exp=1e300)))
    assert far == Identity("ann", expires_at=1e300)


def test_exp_may_be_left_out_where_it_is_not_required() -> None:
    token = token_of(exp=None)
    assert hs256(require=())(request(token=token)) == Identity("ann")
    assert hs256(require=("jti",))(request(token=token)) is None
    assert hs256(require=("jti",))(request(token=token_of(exp=None, jti="1"))) == Identity("ann")
    # A claim that is there counts, required or not.
    assert hs256(require=())(request(token=token_of(exp=1))) is None


async def test_a_connection_ends_with_its_token() -> None:
    hub = Hub(authenticate=hs256())
    async with running(hub):
        ends = int(time.time()) + 2
        headers = [("Authorization", f"Bearer {token_of(exp=ends)}")]
        with await RawClient.open(hub, headers=headers) as raw:
            frame = await raw.recv()
            assert (frame.opcode, frame.code) == (CLOSE, 4401)
            assert time.time() >= ends
        assert await status(hub, *headers) == 401


@pytest.mark.parametrize("audience", ["hub", ["hub"], ("other", "hub"), {"hub"}])
def test_one_audience_in_common_is_enough(audience: Any) -> None:
    authenticator = hs256(audience=audience)
    for named in ("hub", ["hub"], ["x", "hub"]):
        assert user_of(authenticator, request(token=token_of(aud=named))) == "ann"
    for named in ("hu", "hubs", ["x"], None):
        assert user_of(authenticator, request(token=token_of(aud=named))) is None


def test_a_token_with_an_audience_is_refused_where_none_is_set() -> None:
    assert user_of(hs256(), request(token=token_of(aud="hub"))) is None


@pytest.mark.parametrize("issuer", ["https://a", ["https://a", "https://b"], {"https://a"}])
def test_one_of_the_issuers(issuer: Any) -> None:
    authenticator = hs256(issuer=issuer)
    assert user_of(authenticator, request(token=token_of(iss="https://a"))) == "ann"
    for named in ("https://", "https://a/", "https://abc", None):
        assert user_of(authenticator, request(token=token_of(iss=named))) is None


def test_another_claim_may_be_the_user() -> None:
    authenticator = hs256(user_claim="email")
    assert user_of(authenticator, request(token=token_of(email="a@example"))) == "a@example"
    assert user_of(authenticator, request(token=token_of(email=7))) is None
    assert user_of(authenticator, request(token=token_of())) is None


# --- identity ---


def test_the_application_makes_the_identity_of_the_claims() -> None:
    def identity(claims: dict[str, Any]) -> Identity | None:
        if claims["role"] == "guest":
            return None
        return Identity(f"{claims['tenant']}/{claims['sub']}", user_data={"role": claims["role"]})

    authenticator = hs256(identity=identity)
    ends = int(time.time()) + 60
    token = token_of(exp=ends, tenant="t1", role="admin")
    made = authenticator(request(token=token))
    assert made == Identity("t1/ann", user_data={"role": "admin"}, expires_at=ends)
    assert authenticator(request(token=token_of(role="guest"))) is None
    with pytest.raises(KeyError):  # the application's own mistake is not hidden
        authenticator(request(token=token_of()))
    # It is not asked about a bad one.
    assert authenticator(request(token=token_of(exp=1))) is None


@pytest.mark.parametrize(("own", "kept"), [(None, 600), (60, 60), (900, 600)])
def test_an_identity_ends_no_later_than_its_token(own: int | None, kept: int) -> None:
    now = int(time.time())
    expires_at = None if own is None else now + own
    authenticator = hs256(identity=lambda claims: Identity("x", expires_at=expires_at))
    made = authenticator(request(token=token_of(exp=now + 600)))
    assert made == Identity("x", expires_at=now + kept)


def test_an_answer_that_is_no_identity_is_the_applications_mistake() -> None:
    wrong: Any = lambda claims: claims["sub"]  # noqa: E731
    with pytest.raises(ValidationError, match="must return Identity or None, not str"):
        hs256(identity=wrong)(request(token=token_of()))


async def test_an_exception_of_identity_is_500_and_reported() -> None:
    def identity(claims: dict[str, Any]) -> Identity:
        raise RuntimeError("the application's")

    errors: list[BaseException] = []
    hub = Hub(authenticate=hs256(identity=identity))
    hub.on_error(lambda client, error: errors.append(error))
    async with running(hub):
        assert await status(hub, ("Authorization", f"Bearer {token_of()}")) == 500
        assert await status(hub, ("Authorization", f"Bearer {token_of(exp=1)}")) == 401
        assert [str(error) for error in errors] == ["the application's"]


# --- confusion ---


@pytest.mark.parametrize("name", ["RSA", "P-256", "Ed25519"])
@pytest.mark.parametrize("algorithm", SYMMETRIC)
def test_a_public_key_is_no_secret(name: str, algorithm: str) -> None:
    key = PRIVATE[name].public_key()
    asymmetric = {"RSA": "RS256", "P-256": "ES256", "Ed25519": "EdDSA"}[name]
    pem_bytes = pem(PRIVATE[name]).encode()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    member = jwk(PRIVATE[name], "k1", asymmetric, alg=asymmetric)
    digest = getattr(hashlib, f"sha{algorithm[2:]}")
    for secret in (pem_bytes, pem_bytes.strip(), der, json.dumps(member).encode()):
        for header in ({"alg": algorithm}, {"alg": algorithm, "kid": "k1"}):
            token = signed_by_hand(claims(), secret, header, digest)
            for authenticator in (
                JWTAuthenticator(pem_bytes, algorithms=[asymmetric]),
                JWTAuthenticator(jwks={"keys": [member]}),
                JWTAuthenticator(jwks={"keys": [member]}, algorithms=[asymmetric]),
            ):
                assert authenticator(request(token=token)) is None
    for secret in (pem_bytes, der, json.dumps(member).encode()):
        with pytest.raises(ConfigError):
            JWTAuthenticator(secret, algorithms=[algorithm])


def test_keys_in_the_header_are_not_looked_at() -> None:
    key = another(PRIVATE["RSA"])
    headers = {"jwk": jwk(key), "jku": "https://evil.example/jwks", "x5u": "https://evil.example"}
    token = jwt.encode(claims(), key, "RS256", headers=headers)
    authenticator = JWTAuthenticator(pem(PRIVATE["RSA"]), algorithms=["RS256"])
    assert user_of(authenticator, request(token=token)) is None


def test_a_key_is_not_used_with_the_algorithm_of_another() -> None:
    other = another(PRIVATE["RSA"])
    keys = [
        jwk(PRIVATE["RSA"], "a", "RS256", alg="RS256"),
        jwk(other, "b", "RS256", alg="PS512"),
        jwk(PRIVATE["P-256"], "c", "ES256", alg="ES256"),
    ]
    authenticator = JWTAuthenticator(jwks={"keys": keys})
    pairs = {
        ("a", "RS256"): PRIVATE["RSA"],
        ("b", "PS512"): other,
        ("c", "ES256"): PRIVATE["P-256"],
    }
    for kid in ("a", "b", "c"):
        for (own, algorithm), key in pairs.items():
            token = jwt.encode(claims(), key, algorithm, headers={"kid": kid})
            expected = "ann" if kid == own else None
            assert user_of(authenticator, request(token=token)) == expected
    token = jwt.encode(claims(), PRIVATE["RSA"], "RS512", headers={"kid": "a"})
    assert user_of(authenticator, request(token=token)) is None
    # Which of three?
    token = jwt.encode(claims(), PRIVATE["RSA"], "RS256")
    assert user_of(authenticator, request(token=token)) is None


# --- configurations that cannot work ---


def weak_rsa() -> Any:
    return rsa.generate_private_key(65537, 1024)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("either key or jwks", {}),
        ("either key or jwks", {"key": SECRET, "jwks": {}, "algorithms": ["HS256"]}),
        ("needs algorithms", {"key": SECRET}),
        ("is empty", {"key": SECRET, "algorithms": []}),
        ("a list of str", {"key": SECRET, "algorithms": "HS256"}),
        ("nobody has signed", {"key": SECRET, "algorithms": ["none"]}),
        ("nobody has signed", {"key": SECRET, "algorithms": ["HS256", "None"]}),
        ("is none of", {"key": SECRET, "algorithms": ["hs256"]}),
        ("is none of", {"key": SECRET, "algorithms": ["ES256K"]}),
        ("non-empty str", {"key": SECRET, "algorithms": [1]}),
        ("cannot be mixed", {"key": SECRET, "algorithms": ["HS256", "RS256"]}),
        ("cannot be mixed", {"key": "x", "algorithms": ["EdDSA", "HS512"]}),
        ("cannot be mixed", {"jwks": {"keys": []}, "algorithms": ["ES256", "HS512"]}),
        ("has 31 bytes", {"key": b"x" * 31, "algorithms": ["HS256"]}),
        ("has 32 bytes", {"key": b"x" * 32, "algorithms": ["HS256", "HS384"]}),
        ("is no secret", {"key": "", "algorithms": ["HS256"]}),
        ("is no secret", {"key": 7, "algorithms": ["HS256"]}),
        ("is no public key in PEM", {"key": "a key", "algorithms": ["RS256"]}),
        ("is no public key in PEM", {"key": SECRET, "algorithms": ["EdDSA"]}),
        ("is no public key in PEM", {"key": object(), "algorithms": ["ES256"]}),
        ("has 1024 bits", {"key": weak_rsa, "algorithms": ["RS256"]}),
        (r"\(EC\)|curve", {"key": lambda: PRIVATE["P-384"], "algorithms": ["ES256"]}),
        (r"\(EC\)", {"key": lambda: PRIVATE["RSA"], "algorithms": ["RS256", "ES256"]}),
        ("leeway", {"leeway": -1}),
        ("leeway", {"leeway": float("nan")}),
        ("leeway", {"leeway": float("inf")}),
        ("leeway", {"leeway": True}),
        ("leeway", {"leeway": "1"}),
        ("user_claim", {"user_claim": ""}),
        ("user_claim", {"user_claim": None}),
        ("audience is empty", {"audience": []}),
        ("audience", {"audience": [""]}),
        ("audience", {"audience": 7}),
        ("issuer is empty", {"issuer": ()}),
        ("issuer", {"issuer": [None]}),
        ("require must be a list", {"require": "exp"}),
        ("require", {"require": None}),
        ("identity must be", {"identity": "sub"}),
        ("typ must be", {"typ": ""}),
        ("typ must be", {"typ": 7}),
        ("max_lifetime must be", {"max_lifetime": 0}),
        ("max_lifetime must be", {"max_lifetime": True}),
        ("max_lifetime must be", {"max_lifetime": float("nan")}),
        ("path or a mapping", {"key": None, "algorithms": None, "jwks": 7}),
    ],
)
def test_what_cannot_work_is_a_config_error(text: str, options: dict[str, Any]) -> None:
    if options and not {"key", "jwks"} & set(options):
        options = {"key": SECRET, "algorithms": ["HS256"], **options}
    options = {
        name: value() if name == "key" and callable(value) else value
        for name, value in options.items()
    }
    with pytest.raises(ConfigError, match=text) as caught:
        JWTAuthenticator(**options)
    assert SECRET.decode() not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("typ", "good"),
    [
        ("at+jwt", True),
        ("AT+JWT", True),
        ("application/at+jwt", True),
        ("JWT", False),
        (None, False),
        (7, False),
        (["at+jwt"], False),
    ],
)
def test_a_token_has_to_be_of_the_type_that_is_asked_for(typ: Any, good: bool) -> None:
    token = jwt.encode(claims(), SECRET, "HS256", headers={"typ": typ})
    assert user_of(hs256(), request(token=token)) == "ann"
    for wanted in ("at+jwt", "application/AT+JWT"):
        found = user_of(hs256(typ=wanted), request(token=token))
        assert found == ("ann" if good else None)


def test_a_token_may_live_for_so_long_and_no_longer() -> None:
    authenticator = hs256(max_lifetime=3600, require=())
    for ahead, good in ((3500, True), (3700, False), (1e300, False)):
        token = jwt.encode(claims(exp=int(time.time() + ahead)), SECRET, "HS256")
        assert user_of(authenticator, request(token=token)) == ("ann" if good else None)
    endless = {name: value for name, value in claims().items() if name != "exp"}
    token = jwt.encode(endless, SECRET, "HS256")
    assert user_of(hs256(require=()), request(token=token)) == "ann"
    assert user_of(authenticator, request(token=token)) is None


def test_an_async_identity_is_a_config_error() -> None:
    async def identity(claims: dict[str, Any]) -> Identity:
        return Identity("x")

    wrong: Any = identity
    with pytest.raises(ConfigError, match="plain function"):
        hs256(identity=wrong)


GOOD_MEMBER = jwk(PRIVATE["RSA"], "a", "RS256", alg="RS256")


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("list 'keys'", None),
        ("list 'keys'", {"a": 1}),
        ("no key for these", []),
        ("no object", ["x"]),
        ("names no alg", [{**GOOD_MEMBER, "alg": None}]),
        ("not of the type", [{**GOOD_MEMBER, "alg": "ES256"}]),
        ("not of the type", [{**GOOD_MEMBER, "kty": None}]),
        ("cannot be read", [{**GOOD_MEMBER, "n": 7}]),
        ("cannot be read", [{**GOOD_MEMBER, "n": "!"}]),
        ("cannot be read", [{"kty": "oct", "alg": "HS256"}]),
        ("kid that is no str", [{**GOOD_MEMBER, "kid": 7}]),
        ("kid of another key", [GOOD_MEMBER, GOOD_MEMBER]),
        ("cannot be mixed", [GOOD_MEMBER, jwk(SECRET, "b", "HS256", alg="HS256")]),
        ("no key for these", [{**GOOD_MEMBER, "alg": "none"}]),
        ("no key for these", [{**GOOD_MEMBER, "alg": "RSA-OAEP"}]),
        ("no key for these", [{**GOOD_MEMBER, "alg": ["RS256"]}]),
        ("no key for these", [{**GOOD_MEMBER, "use": "enc"}]),
        ("no key for these", [{**GOOD_MEMBER, "key_ops": ["encrypt"]}]),
        ("has 31 bytes", [jwk(b"x" * 31, "b", "HS256", alg="HS256")]),
        ("needs secp256r1", [jwk(PRIVATE["P-384"], "b", "ES384", alg="ES256")]),
    ],
)
def test_a_jwks_that_cannot_be_used(text: str, keys: Any, tmp_path: Path) -> None:
    document = {} if keys is None else {"keys": keys}
    with pytest.raises(ConfigError, match=text) as caught:
        JWTAuthenticator(jwks=document)
    assert GOOD_MEMBER["n"] not in str(caught.value)
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=text):
        JWTAuthenticator(jwks=path)


def test_members_that_are_not_for_us_are_passed_over() -> None:
    keys = [
        {"kty": "XYZ", "alg": "RS999", "kid": "new"},
        {**jwk(another(PRIVATE["RSA"]), "enc"), "use": "enc"},
        {"kty": "OKP", "crv": "X25519", "kid": "x", "x": "AA"},
        jwk(SECRET, "secret", "HS256", alg="HS256"),
        jwk(PRIVATE["P-384"], "b", "ES384", alg="ES384"),
        jwk(PRIVATE["RSA"], "a", "RS256", use="sig", key_ops=["verify"]),
        jwk(PRIVATE["P-256"], "a", "ES256", use="sig"),  # another type: the same kid may be
    ]
    authenticator = JWTAuthenticator(jwks={"keys": keys}, algorithms=["RS256", "ES256", "EdDSA"])
    for key, algorithm in ((PRIVATE["RSA"], "RS256"), (PRIVATE["P-256"], "ES256")):
        token = jwt.encode(claims(), key, algorithm, headers={"kid": "a"})
        assert user_of(authenticator, request(token=token)) == "ann"
    for kid in ("secret", "b", "enc", "new", "x"):
        token = jwt.encode(claims(), SECRET, "HS256", headers={"kid": kid})
        assert user_of(authenticator, request(token=token)) is None


def test_the_private_half_of_a_jwk_stays_unread() -> None:
    member = jwt.get_algorithm_by_name("RS256").to_jwk(PRIVATE["RSA"], as_dict=True)
    authenticator = JWTAuthenticator(jwks={"keys": [{**member, "kid": "a", "alg": "RS256"}]})
    token = jwt.encode(claims(), PRIVATE["RSA"], "RS256", headers={"kid": "a"})
    assert user_of(authenticator, request(token=token)) == "ann"
    (key,) = authenticator._keys()["a"]
    assert not hasattr(key.key, "private_bytes")


@pytest.mark.parametrize(
    ("missing", "package", "options"),
    [
        ("jwt", "PyJWT", "key=bytes(32), algorithms=['HS256']"),
        ("cryptography", "cryptography", "key='x', algorithms=['ES256']"),
    ],
)
def test_without_pyjwt_the_error_says_what_to_install(
    missing: str, package: str, options: str
) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from wsc_fast import ConfigError\n"
        "from wsc_fast.auth import JWTAuthenticator, TokenAuthenticator\n"
        "TokenAuthenticator({'x' * 16: 'ann'})\n"
        f"try: JWTAuthenticator({options})\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"JWTAuthenticator needs {package}: pip install 'wsc_fast[jwt]'\n"


def test_pyjwt_is_loaded_only_where_it_is_used() -> None:
    code = (
        "import sys, wsc_fast.auth\n"
        "wsc_fast.auth.TokenAuthenticator({'x' * 16: 'ann'})\n"
        "assert not {'jwt', 'cryptography'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)


# --- a JWKS in a file ---


class KeyFile:
    """A file of keys by kid, and tokens that are signed with them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys = {kid: another(PRIVATE["P-256"]) for kid in ("old", "new")}
        self.moments = 0

    def write(self, *kids: str, text: str | None = None) -> None:
        """Replaces it as is usual: written beside, then renamed."""
        members = [jwk(self.keys[kid], kid, "ES256", alg="ES256") for kid in kids]
        beside = self.path.with_suffix(".tmp")
        beside.write_text(json.dumps({"keys": members}) if text is None else text)
        self.age(beside)
        beside.replace(self.path)

    def age(self, path: Path) -> None:
        # Each version is some seconds older than now, and than the one after it.
        self.moments += 1
        moment = time.time() - 1000 + 10 * self.moments
        os.utime(path, (moment, moment))

    def token(self, kid: str) -> str:
        return jwt.encode(claims(sub=kid), self.keys[kid], "ES256", headers={"kid": kid})


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeyFile:
    """A file with the old key, that is looked at at each use."""
    monkeypatch.setattr(jwks_file, "JWKS_RECHECK", 0.0)
    file = KeyFile(tmp_path / "jwks.json")
    file.write("old")
    return file


def users(authenticator: JWTAuthenticator, file: KeyFile) -> list[str | None]:
    return [user_of(authenticator, request(token=file.token(kid))) for kid in ("old", "new")]


async def test_a_key_is_changed_on_the_fly(tmp_path: Path) -> None:
    # With the real second.
    file = KeyFile(tmp_path / "jwks.json")
    file.write("old")
    hub = Hub(authenticate=JWTAuthenticator(jwks=file.path))
    async with running(hub):

        async def enters(kid: str) -> bool:
            async with RawAttempt(hub, file.token(kid)) as accepted:
                return accepted

        assert await enters("old")
        assert not await enters("new")
        file.write("new")
        deadline = time.monotonic() + 10
        while not await enters("new"):
            assert time.monotonic() < deadline
        assert not await enters("old")


class RawAttempt:
    """An upgrade with a token: whether it is accepted."""

    def __init__(self, hub: Hub, token: str) -> None:
        self.hub = hub
        self.headers = [("Authorization", f"Bearer {token}")]

    async def __aenter__(self) -> bool:
        self.client = await RawClient.open(self.hub, upgrade=False)
        await self.client.send_raw(RawClient.request(self.hub, "/ws", self.headers))
        return (await self.client.read_response()).startswith(b"HTTP/1.1 101 ")

    async def __aexit__(self, *args: object) -> None:
        self.client.close()


def test_the_path_may_be_text_or_a_path(key_file: KeyFile) -> None:
    for path in (key_file.path, str(key_file.path)):
        assert users(JWTAuthenticator(jwks=path), key_file) == ["old", None]


def test_keys_come_and_go_with_the_file(key_file: KeyFile) -> None:
    authenticator = JWTAuthenticator(jwks=key_file.path, algorithms=["ES256"])
    assert users(authenticator, key_file) == ["old", None]
    key_file.write("old", "new")
    assert users(authenticator, key_file) == ["old", "new"]
    key_file.write("new")
    assert users(authenticator, key_file) == [None, "new"]
    # Written in place.
    text = key_file.path.read_text()
    key_file.write("old")
    users(authenticator, key_file)
    key_file.path.write_text(text)
    assert users(authenticator, key_file) == [None, "new"]


def test_it_is_looked_at_once_a_second_at_most(
    key_file: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks_file, "JWKS_RECHECK", 1.0)
    clock = [1000.0]
    monkeypatch.setattr(jwks_file.clock, "monotonic", lambda: clock[0])
    authenticator = JWTAuthenticator(jwks=key_file.path)
    looks = []
    real = os.stat
    monkeypatch.setattr(jwks_file.os, "stat", lambda path: looks.append(path) or real(path))
    key_file.write("new")
    for clock[0] in (1000.1, 1000.5, 1000.99):
        assert users(authenticator, key_file) == ["old", None]
    assert looks == []
    for clock[0] in (1001.0, 1001.1, 1001.9):
        assert users(authenticator, key_file) == [None, "new"]
    assert len(looks) == 1
    # And read anew only where it has changed.
    monkeypatch.setattr(jwks_file.os, "open", Untouchable())
    clock[0] = 1003.0
    assert users(authenticator, key_file) == [None, "new"]
    assert len(looks) == 2


SECRET_MEMBER = jwk(SECRET, "s", "HS256", alg="HS256")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no JSON"),
        ('{"keys": [', "no JSON"),
        ("\x00\xff", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "list 'keys'"),
        (" " * (jwks_file.JWKS_MAX + 1), "more than"),
    ],
    ids=range(6),
)
def test_a_broken_file_keeps_the_old_keys_and_says_so_once(
    text: str, reason: str, key_file: KeyFile, caplog: pytest.LogCaptureFixture
) -> None:
    authenticator = JWTAuthenticator(jwks=key_file.path)
    key_file.write(text=text)
    for _ in range(3):
        assert users(authenticator, key_file) == ["old", None]
    (record,) = [record for record in caplog.records if record.levelno > logging.DEBUG]
    assert record.levelno == logging.WARNING
    assert reason in record.getMessage()
    assert str(key_file.path) in record.getMessage()
    assert SECRET_MEMBER["k"] not in record.getMessage()
    key_file.write("new")
    assert users(authenticator, key_file) == [None, "new"]
    # A file that breaks once more makes one more line.
    log.tell_counts(at_once=True)
    key_file.write(text=text + " ")
    assert users(authenticator, key_file) == [None, "new"]
    assert sum(record.levelno == logging.WARNING for record in caplog.records) == 2


def test_a_set_without_keys_that_can_be_used_takes_no_token(
    key_file: KeyFile, caplog: pytest.LogCaptureFixture
) -> None:
    authenticator = JWTAuthenticator(jwks=key_file.path)
    for text in ('{"keys": []}', json.dumps({"keys": [{**SECRET_MEMBER, "k": 7}]})):
        key_file.write(text=text)
        for _ in range(3):
            assert users(authenticator, key_file) == [None, None]
        assert "has no key: no token is taken" in caplog.text
        log.tell_counts(at_once=True)
        caplog.clear()
        key_file.write("old")
        assert users(authenticator, key_file) == ["old", None]


def test_a_key_that_cannot_be_used_keeps_no_removed_key(
    key_file: KeyFile, caplog: pytest.LogCaptureFixture
) -> None:
    good = jwk(key_file.keys["new"], "new", "ES256", alg="ES256")
    for bad, reason in (
        ("x", "no object"),
        ({**SECRET_MEMBER, "k": 7}, "cannot be read"),
        (jwk(b"x" * 31, "b", "HS256", alg="HS256"), "has 31 bytes"),
        (SECRET_MEMBER, "cannot be mixed"),
        (good, "kid of another key"),
        ({**GOOD_MEMBER, "kid": 7}, "no str"),
    ):
        key_file.write("old")
        authenticator = JWTAuthenticator(jwks=key_file.path)
        caplog.clear()
        key_file.write(text=json.dumps({"keys": [good, bad]}))
        for _ in range(2):
            assert users(authenticator, key_file) == [None, "new"]
        (record,) = [each for each in caplog.records if each.levelno == logging.WARNING]
        assert reason in record.getMessage()
        assert SECRET_MEMBER["k"] not in record.getMessage()
        if reason in ("cannot be mixed", "kid of another key"):
            continue  # which is an error at the start
        document = {"keys": [good, bad]}
        assert users(JWTAuthenticator(jwks=document), key_file) == [None, "new"]
        assert users(JWTAuthenticator(jwks=key_file.path), key_file) == [None, "new"]


def test_the_keys_of_a_file_that_is_none_any_more_have_an_age(
    key_file: KeyFile, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(jwks_file.clock, "monotonic", lambda: clock[0])
    authenticator = JWTAuthenticator(jwks=key_file.path)
    clock[0] += 1_000_000  # the file is looked at, and is what it was
    assert users(authenticator, key_file) == ["old", None]
    for breaks in (lambda: key_file.write(text="{"), key_file.path.unlink):
        breaks()
        clock[0] += jwks_file.JWKS_MAX_AGE
        assert users(authenticator, key_file) == ["old", None]
        clock[0] += 1
        log.tell_counts(at_once=True)
        caplog.clear()
        assert users(authenticator, key_file) == [None, None]
        assert "no token is taken" in caplog.text
        key_file.write("old")
        assert users(authenticator, key_file) == ["old", None]


def test_a_broken_file_of_this_moment_is_said_once_too(
    key_file: KeyFile, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    authenticator = JWTAuthenticator(jwks=key_file.path)
    # Ever too young for its mtime to be relied on: read at each look.
    monkeypatch.setattr(key_file, "age", lambda path: os.utime(path, (2**33, 2**33)))
    key_file.write(text="{")
    for _ in range(3):
        assert users(authenticator, key_file) == ["old", None]
    assert sum(record.levelno == logging.WARNING for record in caplog.records) == 1


def test_so_does_one_that_is_gone_or_no_file(
    key_file: KeyFile, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]

    authenticator = JWTAuthenticator(jwks=key_file.path)
    key_file.path.unlink()
    for _ in range(3):
        assert users(authenticator, key_file) == ["old", None]
    assert len(warnings()) == 1
    assert "No such file" in warnings()[0]
    key_file.write("new")
    assert users(authenticator, key_file) == [None, "new"]
    key_file.path.unlink()
    os.mkfifo(key_file.path)  # which must not be waited for
    for _ in range(3):
        assert users(authenticator, key_file) == [None, "new"]
    assert len(warnings()) == 2
    assert "not a file" in warnings()[1]
    key_file.path.unlink()
    key_file.write("old")
    assert users(authenticator, key_file) == ["old", None]


def test_a_file_that_cannot_be_used_at_first_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    with pytest.raises(ConfigError, match="No such file"):
        JWTAuthenticator(jwks=path)
    with pytest.raises(ConfigError, match=r"directory|not a file"):
        JWTAuthenticator(jwks=tmp_path)
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="not a file"):
        JWTAuthenticator(jwks=path)
    path.unlink()
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"jwks\.json: it is no JSON"):
        JWTAuthenticator(jwks=path)


def test_a_file_that_was_changed_within_one_tick_is_read_once_more(
    key_file: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two versions of one mtime, size and inode; the first is what was read.
    key_file.write("old")
    moment = time.time()
    os.utime(key_file.path, (moment, moment))
    monkeypatch.setattr(jwks_file, "JWKS_RECHECK", 0.2)
    authenticator = JWTAuthenticator(jwks=key_file.path)
    assert users(authenticator, key_file) == ["old", None]
    member = jwk(key_file.keys["new"], "new", "ES256", alg="ES256")
    data = json.dumps({"keys": [member]}).encode()
    assert len(data) == key_file.path.stat().st_size
    with key_file.path.open("r+b") as file:
        file.write(data)
    os.utime(key_file.path, (moment, moment))
    wait_until(lambda: users(authenticator, key_file) == [None, "new"])


def test_threads_share_one(key_file: KeyFile) -> None:
    authenticator = JWTAuthenticator(jwks=key_file.path)
    tokens = [key_file.token(kid) for kid in ("old", "new")]
    wrong: list[object] = []
    done = threading.Event()

    def work() -> None:
        try:
            while not done.is_set():
                # At each moment one of two is good, or both.
                found = [user_of(authenticator, request(token=token)) for token in tokens]
                if not set(found) <= {"old", "new", None}:
                    wrong.append(found)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(40):
        key_file.write(*(("old",), ("old", "new"), ("new",))[number % 3])
        time.sleep(0.005)
    key_file.write("old")
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert users(authenticator, key_file) == ["old", None]


# --- garbage ---


TEXT = st.text(max_size=200)
ASCII = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=200)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
JWKS_AUTHENTICATOR = JWTAuthenticator(
    jwks={"keys": [jwk(PRIVATE["P-256"], "k1", "ES256"), jwk(PRIVATE["RSA"], "k2", "RS256")]},
    algorithms=["ES256", "RS256"],
    query="t",
)
ALL: list[Callable[[Request], Identity | None]] = [
    EVERYWHERE,
    hs256(cookie="t", query="t"),
    JWTAuthenticator(pem(PRIVATE["RSA"]), algorithms=["RS256"], query="t"),
    JWTAuthenticator(pem(PRIVATE["Ed25519"]), algorithms=["EdDSA"], query="t"),
    JWKS_AUTHENTICATOR,
]


class Garbage:
    """A request of which anything may come: no head has been parsed."""

    path = "/ws"
    remote_address = "192.0.2.1"

    def __init__(self, headers: Mapping[str, str], query: str) -> None:
        self.headers = CIMultiDict(headers)
        self._head = self
        self._query = query
        self.protocols = [headers["Sec-WebSocket-Protocol"]] if len(headers) > 1 else None

    def query_pairs(self) -> list[tuple[str, str]]:
        return [("t", self._query)]

    def cookie_pairs(self) -> list[tuple[str, str]]:
        pairs = (part.partition("=") for part in self.headers.get("Cookie", "").split(";"))
        return [(name.strip(), value) for name, _, value in pairs]


@given(TEXT | ASCII, TEXT | ASCII, TEXT | ASCII, ASCII)
@settings(max_examples=300, deadline=None)
@example("\ud800", "t=\ud800", "bearer.\ud800", "t=%")
@example("Bearer \ud800.a.b", "", "", "")
def test_no_text_raises(header: str, cookie: str, protocol: str, query: str) -> None:
    headers = {
        "Authorization": header,
        "Cookie": cookie,
        "Sec-WebSocket-Protocol": protocol,
    }
    for authenticator in ALL:
        for sent in (headers, {"Authorization": f"Bearer {header}"}, {"Cookie": f"t={cookie}"}):
            garbage: Any = Garbage(sent, query)
            assert authenticator(garbage) is None


@pytest.mark.parametrize("first", [0, 254, 255, 256, 900])
def test_a_token_among_more_than_is_looked_at_is_refused(first: int) -> None:
    token = "a" * 20
    authenticator = TokenAuthenticator({token: "ann"}, cookie="session", query="t")

    def user_of(target: str, header: str) -> str | None:
        lines = [f"GET {target} HTTP/1.1", "Host: x", header, ""]
        found = authenticator(Request(RequestHead("\r\n".join(lines).encode()), "192.0.2.1"))
        return None if found is None else found.user_id

    # Another token could stand behind those that were looked at.
    expected = "ann" if first < 255 else None
    cookies = [f"n{number}=1" for number in range(first)]
    pairs = "&".join([*cookies, f"t={token}"])
    assert user_of(f"/ws?{pairs}", "X: y") == expected
    assert user_of("/ws", "Cookie: " + "; ".join([*cookies, f"session={token}"])) == expected
    some = first // 4
    offers = ", ".join([*(f"n{number}" for number in range(some)), f"bearer.{token}"])
    assert user_of("/ws", f"Sec-WebSocket-Protocol: {offers}") == ("ann" if some < 63 else None)
    # Empty items are none, however many.
    assert user_of("/ws?" + "&" * first + f"t={token}", "X: y") == "ann"


@given(ASCII, ASCII, ASCII)
@settings(max_examples=300, deadline=None)
def test_no_three_parts_raise(header: str, payload: str, signature: str) -> None:
    parts = [header.replace(".", ""), payload.replace(".", ""), signature]
    for made in (parts, [b64(part.encode()) for part in parts]):
        for authenticator in ALL:
            assert authenticator(request(token=".".join(made))) is None


@given(
    st.fixed_dictionaries(
        {"alg": JSON | st.sampled_from(["HS256", "RS256", "ES256", "EdDSA", "none"])},
        optional={"kid": JSON | st.sampled_from(["k1", "k2"]), "crit": JSON, "b64": JSON},
    ),
    JSON,
)
@settings(max_examples=300, deadline=None)
def test_no_header_and_payload_raise(header: object, payload: object) -> None:
    token = signed_by_hand(payload, b"not the secret" * 5, header)
    for authenticator in ALL:
        assert authenticator(request(token=token)) is None


@given(
    st.dictionaries(
        st.sampled_from(["sub", "exp", "nbf", "iat", "aud", "iss", "jti"]), JSON, max_size=7
    )
)
@settings(max_examples=300, deadline=None)
def test_no_signed_claims_raise(payload: dict[str, Any]) -> None:
    token = signed_by_hand(payload, SECRET)
    for authenticator in (hs256(require=()), strict(), hs256(identity=lambda claims: None)):
        identity = authenticator(request(token=token))
        assert identity is None or identity.user_id == payload["sub"]


def test_a_bug_in_pyjwt_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    authenticator = hs256()

    def decode(*args: object, **options: object) -> None:
        raise ZeroDivisionError(TOKEN)

    monkeypatch.setattr(authenticator._decoder, "decode", decode)
    assert authenticator(request(token=token_of())) is None


# --- nothing is said ---


async def test_no_log_of_any_level_has_a_token(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    good, bad = token_of(), BAD["expired"]
    for authenticator, tokens in (
        (TokenAuthenticator({TOKEN: "ann"}, cookie="t", query="t"), (TOKEN, OTHER)),
        (hs256(cookie="t", query="t"), (good, bad, "garbage.garbage.garbage", *BAD.values())),
    ):
        hub = Hub(authenticate=authenticator)
        async with running(hub):
            for token in tokens:
                places = PLACES if token in (TOKEN, OTHER, good, bad) else ("header",)
                for place in places:
                    header, query = PLACES[place](token)
                    data = RawClient.request(hub, f"/ws?{query}", [header])
                    with await RawClient.open(hub, upgrade=False) as client:
                        await client.send_raw(data)
                        await client.read_response()
                        for part in (part for part in token.split(".") if part):
                            assert part.encode() not in client.response
                log.tell_counts(at_once=True)  # so that each has a line of its own
    said = "\n".join(f"{record.getMessage()} {record.exc_text}" for record in caplog.records)
    assert "not authenticated: 'the token is unknown'" in said
    assert "not authenticated: 'ExpiredSignatureError'" in said
    for token in (TOKEN, OTHER, good, bad, "garbage", *BAD.values()):
        for part in token.split("."):
            assert len(part) < 8 or part not in said
    assert "ann" not in said.replace("cannot", "")


def test_its_repr_shows_no_secret() -> None:
    for authenticator in ALL:
        for text in (repr(authenticator), str(authenticator)):
            assert TOKEN not in text
            assert "0123456789" not in text


# --- the recipes of docs/authentication.md ---


PAGE = (Path(__file__).parents[1] / "docs/authentication.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


async def test_the_recipes_run_and_do_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BILLING_TOKEN", TOKEN)
    monkeypatch.setenv("MONITOR_TOKEN", OTHER)
    monkeypatch.setenv("JWT_SECRET", SECRET.decode())
    key = PRIVATE["P-256"]
    (tmp_path / "issuer.pem").write_text(pem(key))
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [jwk(key, "k1", "ES256")]}))
    static, with_password, with_secret, with_key, with_function = BLOCKS
    names: dict[str, Any] = {}

    async def user(token: str) -> str | None:
        offers: list[Any] = ["chat", f"bearer.{token}"]
        async with running(names["hub"]) as hub:
            try:
                async with websockets.connect(uri(hub), subprotocols=offers):
                    await eventually(lambda: hub.get_connected_clients() == 1)
                    return only_client(hub).user_id
            except websockets.InvalidStatus as error:
                return None if error.response.status_code == 401 else str(error)

    exec(static, names)
    assert await user(TOKEN) == "billing"
    assert await user(OTHER) == "monitor"
    assert await user(TOKEN[::-1]) is None

    exec(with_password, names)
    async with running(names["hub"]) as hub:
        asked = b"GET /console HTTP/1.1\r\nHost: a\r\n\r\n"
        assert b" 401 " in (await exchange(hub, asked)).split(b"\r\n")[0]

    exec(with_secret, names)
    sent = request(token=token_of(aud="chat"))
    assert user_of(names["with_secret"], sent) == "ann"
    exec(with_key, names)
    good = {"aud": "chat", "iss": "https://login.example", "scope": "a chat", "tenant": "t"}
    headers = {"kid": "k1"}
    token = jwt.encode(claims(**good), key, "ES256", headers=headers)
    assert user_of(names["with_key"], request(token=token)) == "ann"
    assert await user(token) == "ann"
    assert await user(jwt.encode(claims(), key, "ES256", headers=headers)) is None

    exec(with_function, names)
    good = {"scope": "a chat", "tenant": "t"}
    assert await user(jwt.encode(claims(**good), key, "ES256", headers=headers)) == "t/ann"
    assert await user(jwt.encode(claims(), key, "ES256", headers=headers)) is None


@given(st.text("ab=&+%2f;F0", max_size=14))
@example("user=ann&token=a%20b+c&user=bob")
@example("&&=a&b&b=%ff&c=%E2%82")
def test_a_query_is_read_as_urllib_reads_it(query: str) -> None:
    pairs = parse_qsl(query, keep_blank_values=True)
    assert request(path=f"/ws?{query}").query == dict(reversed(pairs))


# --- outside of an upgrade ---


def test_a_token_outside_of_an_upgrade_has_the_identity_of_one_within() -> None:
    def member(claims: dict[str, Any]) -> Identity | None:
        return Identity(claims["sub"]) if claims["sub"] != "eve" else None

    for authenticator, good, bad in (
        (TokenAuthenticator({TOKEN: "ann"}), TOKEN, OTHER),
        (
            JWTAuthenticator(SECRET, algorithms=["HS256"]),
            jwt.encode(claims(), SECRET, "HS256"),
            jwt.encode(claims(exp=1), SECRET, "HS256"),
        ),
        (
            JWTAuthenticator(SECRET, algorithms=["HS256"], identity=member),
            jwt.encode(claims(), SECRET, "HS256"),
            jwt.encode(claims(sub="eve"), SECRET, "HS256"),
        ),
    ):
        identity = authenticator.identity(good)
        assert identity is not None
        assert identity == authenticator(request(token=good))
        assert identity.user_id == "ann"
        for wrong in (bad, "", "\xfc", "x" * (TOKEN_MAX + 1), f"Bearer {good}"):
            assert authenticator.identity(wrong) is None
        with pytest.raises(ValidationError, match="token must be a str, not bytes"):
            authenticator.identity(good.encode())  # type: ignore[arg-type]


def test_an_error_of_the_applications_function_is_its_own() -> None:
    def failing(claims: dict[str, Any]) -> Identity | None:
        raise LookupError("no such member")

    authenticator = JWTAuthenticator(SECRET, algorithms=["HS256"], identity=failing)
    with pytest.raises(LookupError, match="no such member"):
        authenticator.identity(jwt.encode(claims(), SECRET, "HS256"))
