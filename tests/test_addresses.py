"""The grammar of hosts, origins and addresses: settings and requests read by the same functions."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support import exchange, only_client
from wsc_fast import ConfigError, Hub, HubConfig
from wsc_fast.addresses import (
    AllowedOrigins,
    address_key,
    forwarded_address,
    origin_allowed,
    parse_address,
    parse_hop,
    parse_host,
    parse_network,
    parse_origin,
)
from wsc_fast.testing import RawClient, running

# --- each literal that HubConfig takes matches itself

NAMES = st.one_of(
    st.text("abcXYZ019._~-*", min_size=1, max_size=12),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
    st.ip_addresses(v=4).map(lambda address: f"[::ffff:{address}]"),
    st.text(max_size=8),
)
PORTS = st.one_of(st.just(""), st.integers(0, 99_999).map(lambda port: f":{port}"))
HOSTS = st.builds(str.__add__, NAMES, PORTS)
SCHEMES = st.sampled_from(["http://", "HTTPS://", "capacitor://", "chrome-extension://", "file://"])
ORIGINS = st.one_of(
    HOSTS,
    st.builds("*.{}".format, HOSTS),
    st.builds("{}{}".format, SCHEMES, HOSTS),
    st.builds("{}*.{}".format, SCHEMES, HOSTS),
    st.builds("{}{}".format, SCHEMES, st.text(max_size=10)),
    st.sampled_from(["*", "null", "file://", "app://.", "Null", "://", "*."]),
    st.text(max_size=10),
)


def taken(**settings: tuple[str, ...]) -> bool:
    try:
        HubConfig(**settings)  # type: ignore[arg-type]
    except ConfigError:
        return False
    return True


def origins_of(entry: str) -> list[str]:
    """Origins that an entry of allowed_origins has to allow: itself, where it is one."""
    if "://" in entry or entry in ("*", "null"):
        texts = [entry]
    else:
        texts = [f"{scheme}://{entry}" for scheme in ("http", "https")]
    return [text.replace("://*.", "://deep.below.", 1) for text in texts]


@given(ORIGINS)
@example("http://my_host:3000")
@example("*.my_zone.example")
@example("null")
@example("http://[0:0::1]:8080")
@example("*.[::1]")
@example("chrome-extension://abcdefghijklmnop")
def test_each_origin_that_the_setting_takes_is_allowed(entry: str) -> None:
    if taken(allowed_origins=(entry,)):
        for origin in origins_of(entry):
            assert origin_allowed(origin, "elsewhere.example", False, (entry,)), origin


@given(HOSTS)
@example("my_host:8080")
@example("[0:0::1]")
def test_each_host_that_the_setting_takes_is_the_one_of_its_requests(entry: str) -> None:
    if taken(allowed_hosts=(entry,)):
        hub = Hub(HubConfig(allowed_hosts=(entry,)))
        assert parse_host(entry) in hub._parts.site.allowed_hosts
        assert parse_host(entry.swapcase()) in hub._parts.site.allowed_hosts


@given(st.ip_addresses(), st.integers(0, 128), st.booleans())
@example(ip_address("10.0.0.1"), 24, True)
@example(ip_address("10.0.0.1"), 32, True)
@example(ip_address("::"), 80, False)
@example(ip_address("::ffff:10.0.0.1"), 100, False)
def test_each_network_that_the_setting_takes_has_the_addresses_in_it(
    address: object, size: int, mapped: bool
) -> None:
    parsed = ip_address(str(address))
    version = parsed.version
    network = ip_network((int(parsed), size % (parsed.max_prefixlen + 1)), strict=False)
    text = str(network)
    if version == 4 and mapped:
        text = f"::ffff:{network.network_address}/{network.prefixlen + 96}"
    assert taken(trusted_proxies=(text,))
    hub = Hub(HubConfig(trusted_proxies=(text,)))
    for member in (network[0], network[-1]):
        texts = [str(member), f"::ffff:{member}"] if version == 4 else [str(member)]
        # IPv4 within IPv6 counts as IPv4, which a network that holds more of IPv6 is not.
        trusted = getattr(member, "ipv4_mapped", None) is None or network.prefixlen >= 96
        for peer in texts:
            told = forwarded_address(peer, ["192.0.2.7"], hub._parts.site.trusted_proxies)
            assert (told == "192.0.2.7") == trusted


@given(st.text("0123456789abcdef:.%/[]\x00 \x1b", max_size=20))
@example("::ffff:10.0.0.1")
@example("fe80::1%eth0")
@example("::1%\x1b[31m")
def test_each_address_that_is_one_is_believed_as_it_is_and_nothing_else(text: str) -> None:
    address = parse_address(text)
    if address is None:
        assert forwarded_address("127.0.0.1", [text], (ip_network("127.0.0.1"),)) in (
            "127.0.0.1",
            str(parse_hop(text.strip())),
        )
    else:
        assert ip_address(str(address)) == address
        assert parse_network(text) == ip_network(str(address))
    if "%" in text or not text.isprintable():
        assert parse_hop(text) is None
        assert not taken(trusted_proxies=(text,))


# --- hosts and origins


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("app.example", ("app.example", None)),
        ("My_Host:8080", ("my_host", 8080)),
        ("a~b.local", ("a~b.local", None)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("[::1]:65535", ("[::1]", 65535)),
        ("[0:0:0:0:0:0:0:1]", ("[::1]", None)),
        ("a" * 255, ("a" * 255, None)),
    ],
)
def test_what_is_a_host(text: str, expected: object) -> None:
    assert parse_host(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "a b", "a/b", "a?b", "a#b", "a@b", "a,b", "a:", ":80", "a:b", "a:0", "a:65536"),
        *("a:123456", "a:\xb2", "[]", "[::1", "::1", "[::1]a", "[1.2.3.4]", "[fe80::1%eth0]"),
        *("[::1%1]", "\xe4.example", "\u212aelvin.example", "a\n", "a\x00", "a" * 256, "a\\b"),
    ],
)
def test_what_is_no_host(text: str) -> None:
    assert parse_host(text) is None
    assert not taken(allowed_hosts=(text,))
    assert parse_origin(f"http://{text}") is None


APP_ORIGINS = [
    "capacitor://localhost",
    "ionic://localhost",
    "tauri://localhost",
    "app://.",
    "app://obsidian.md",
    "file://",
    "chrome-extension://gighmmpiobklfepjocnamgkkbiglidom",
    "moz-extension://2c127fa4-62c7-7e4f-90e5-472b45eecfdc",
    "vscode-webview://1ABC",
    "null",
]


@pytest.mark.parametrize("origin", APP_ORIGINS)
async def test_the_origin_of_an_app_is_allowed_by_its_text(origin: str) -> None:
    hub = Hub()
    async with running(hub):
        request = RawClient.request(hub, headers=[("Origin", origin)])
        assert (await exchange(hub, request)).startswith(b"HTTP/1.1 403 ")
        hub.set_config(HubConfig(allowed_origins=("https://app.example", origin)))
        with await RawClient.open(hub, headers=[("Origin", origin)]):
            pass
        for other in ("ionic://localhos", "ionic://localhost:1", f"{origin}x", "file:///", "nul"):
            request = RawClient.request(hub, headers=[("Origin", other)])
            assert (await exchange(hub, request)).startswith(b"HTTP/1.1 403 "), other


@pytest.mark.parametrize(
    "entry",
    [
        *("https://*", "https://", "http://*.", "*.", "*x", "a.*", "https://app.example/"),
        *("https://a.example?", "capacitor://*", "capacitor://*.x", "capacitor://a/b", "file:///"),
        *("app://a#b", "app://a b", "app://\xe4", "1app://a", "://a", "a://b://c", "*.[::1]"),
        *("https://a.example, https://b.example", "https://user@a.example", "nul l", "**"),
    ],
)
def test_an_entry_that_no_origin_could_match_is_refused(entry: str) -> None:
    assert not taken(allowed_origins=(entry,))
    with pytest.raises(ValueError, match="no origin"):
        AllowedOrigins((entry,))


@pytest.mark.parametrize("name", ["my_host", "app_1.example.com", "dev_box.local", "a~b", "x--y"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_page_may_use_its_own_hub_whatever_its_name(name: str, scheme: str) -> None:
    hub = Hub()
    async with running(hub):
        own = f"{name}:{hub.port}"
        headers = [("Origin", f"{scheme}://{own}")]
        with await RawClient.open(hub, upgrade=False) as raw:
            await raw.send_raw(raw.request(hub, headers=headers, Host=own))
            assert (await raw.read_response()).startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize(
    ("origin", "tls", "allowed", "expected"),
    [
        ("http://app.example", False, (), True),
        # Somebody on the network can write a page that comes without TLS.
        ("http://app.example", True, (), False),
        ("http://app.example", False, ("https://app.example",), False),
        ("http://app.example", False, ("https://app.example:443",), False),
        ("http://app.example", True, ("http://app.example",), True),
        ("http://app.example", False, ("https://app.example", "http://app.example"), True),
        ("http://app.example", False, ("app.example",), True),
        ("http://app.example", False, ("https://other.example", "https://*.example"), True),
        ("https://app.example", True, (), True),
        ("https://app.example", False, ("https://app.example",), True),
    ],
)
def test_whether_a_page_without_tls_is_the_hosts_own(
    origin: str, tls: bool, allowed: tuple[str, ...], expected: bool
) -> None:
    assert origin_allowed(origin, "app.example", tls, allowed) is expected


@pytest.mark.parametrize("proto", ["https", "HTTPS", "https, http", "http, https", "wss"])
async def test_a_proxy_tells_that_a_request_came_by_tls(proto: str) -> None:
    hub = Hub(HubConfig(trusted_proxies=("127.0.0.1",)))
    async with running(hub):

        async def status(scheme: str, *headers: tuple[str, str]) -> bytes:
            own = [("Origin", f"{scheme}://app.example"), *headers]
            request = RawClient.request(hub, headers=own, Host="app.example")
            with await RawClient.open(hub, upgrade=False) as raw:
                await raw.send_raw(request)
                return (await raw.read_response())[9:12]

        assert await status("https", ("X-Forwarded-Proto", proto)) == b"101"
        assert await status("http", ("X-Forwarded-Proto", proto)) == b"403"
        assert await status("http", ("X-Forwarded-Proto", "http")) == b"101"
        assert await status("http") == b"101"
        # Nobody else is believed, though it would only be the sender's loss.
        hub.set_config(HubConfig())
        assert await status("http", ("X-Forwarded-Proto", proto)) == b"101"


# --- what proxies forward

HOPS: list[tuple[str, str | None]] = [
    ("192.0.2.1", "192.0.2.1"),
    ("192.0.2.1:51008", "192.0.2.1"),
    ("192.0.2.1:_hidden", "192.0.2.1"),
    ('"192.0.2.1:80"', "192.0.2.1"),
    ("2001:db8::17", "2001:db8::17"),
    ("[2001:db8::17]", "2001:db8::17"),
    ("[2001:DB8::17]:47011", "2001:db8::17"),
    ('"[2001:db8::17]:47011"', "2001:db8::17"),
    ("::ffff:192.0.2.1", "192.0.2.1"),
    ("[::ffff:192.0.2.1]:80", "192.0.2.1"),
    ("", None),
    ("unknown", None),
    ("_hidden", None),
    ("localhost", None),
    ("192.0.2", None),
    ("192.0.2.01", None),
    ("192.0.2.1:", None),
    ("192.0.2.1:port", None),
    ("192.0.2.1:123456", None),
    ("[192.0.2.1]:80", None),
    ("[2001:db8::17", None),
    ("2001:db8::17]", None),
    ("[2001:db8::17]80", None),
    ("[2001:db8::17]:", None),
    ("fe80::1%eth0", None),
    ("[fe80::1%25eth0]", None),
    ('::1%\x1b[31mevil" onload=x', None),
    ("192.0.2.1\x00", None),
    ("16777216", None),
    ('"', None),
    ('""', None),
    ("192.0.2.1 192.0.2.2", None),
]


@pytest.mark.parametrize(("hop", "expected"), HOPS, ids=[repr(hop) for hop, _ in HOPS])
def test_the_address_of_a_forwarded_hop(hop: str, expected: str | None) -> None:
    trusted = (ip_network("127.0.0.1"), ip_network("10.0.0.0/8"))
    assert parse_hop(hop) == (None if expected is None else ip_address(expected))
    believed = expected or "127.0.0.1"
    assert forwarded_address("127.0.0.1", [hop], trusted) == believed
    assert forwarded_address("127.0.0.1", [f"6.6.6.6, {hop}"], trusted) == believed
    # Behind a second proxy, which tells its port too.
    through = forwarded_address("127.0.0.1", [f"{hop}, 10.0.0.6:9000"], trusted)
    assert through == (expected or "10.0.0.6")


def test_more_hops_than_anybody_has_are_not_looked_through() -> None:
    trusted = (ip_network("127.0.0.1"),)
    hops = ["192.0.2.1"] + ["127.0.0.1"] * 15
    assert forwarded_address("127.0.0.1", [", ".join(hops)], trusted) == "192.0.2.1"
    assert forwarded_address("127.0.0.1", hops, trusted) == "192.0.2.1"
    assert forwarded_address("127.0.0.1", [*hops, "127.0.0.1"], trusted) == "127.0.0.1"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:DB8:0:0:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8::1", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:
    assert (address_key(one) == address_key(other)) is same


@pytest.mark.parametrize("setting", ["trusted_proxies", "allowed_hosts", "allowed_origins"])
@pytest.mark.parametrize("text", ["\n", "a\n", "10.0.0.1\n", "\ud800", "\U0001d7d8", "\xa0"])
def test_no_setting_takes_what_no_request_can_say(setting: str, text: str) -> None:
    assert not taken(**{setting: (text,)})


@pytest.mark.parametrize(
    "work",
    [
        lambda: parse_origin("http://" + "a." * 8_000),
        lambda: origin_allowed("http://" + "a" * 16_000, "x", False, ("*.b", "https://a")),
        lambda: origin_allowed("x://" + "a" * 16_000, "x", False, ("app://b",)),
        lambda: parse_host("[" + ":" * 16_000 + "]"),
        lambda: parse_hop("1" * 16_000 + ":80"),
        lambda: forwarded_address(
            "127.0.0.1", ["127.0.0.1," * 1_600 + "127.0.0.1"], (ip_network("127.0.0.1"),)
        ),
        lambda: forwarded_address("127.0.0.1", ["1," * 8_000], (ip_network("127.0.0.1"),)),
    ],
)
def test_long_text_takes_no_long_time(work: Callable[[], object]) -> None:
    import time

    took = []
    for _ in range(5):
        began = time.thread_time()
        work()
        took.append(time.thread_time() - began)
    assert min(took) < 0.0005


async def test_an_ipv4_client_of_a_socket_for_both_has_its_ipv4_address(any_loop: str) -> None:
    import socket

    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no sockets for both")
    sock = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    hub = Hub(HubConfig(trusted_proxies=("127.0.0.1",)))
    async with running(hub, sock=sock):
        with await RawClient.open(hub):
            assert only_client(hub).remote_address == "127.0.0.1"
        with await RawClient.open(hub, headers=[("X-Forwarded-For", "192.0.2.1:5000")]):
            addresses = {client.remote_address for client in hub._engine.open_clients()}
            assert "192.0.2.1" in addresses
