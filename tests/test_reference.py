"""docs/reference.md and docs/configuration.md: every public name, setting, default and field."""

from __future__ import annotations

import inspect
import re
import types
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import pytest

import wsc_fast
from wsc_fast import (
    ACKConfig,
    ACKMessage,
    AckStatus,
    Client,
    HistoryEntry,
    Hub,
    HubConfig,
    HubMessage,
    HubStats,
    Identity,
    LocalBus,
    MemoryBus,
    MemoryOfflineStore,
    OfflineStore,
    PendingACK,
    Priority,
    Published,
    RedisBus,
    RedisOfflineStore,
    Request,
    Response,
    RetryConfig,
    SendAttempt,
    SendFailureReason,
    SendResult,
    SQLiteOfflineStore,
    StoredMessage,
)
from wsc_fast.auth import JWTAuthenticator, TokenAuthenticator
from wsc_fast.cluster.counters import Counters
from wsc_fast.config.base import Settings
from wsc_fast.config.kinds import kinds_of

DOCS = Path(__file__).parent.parent / "docs"
REFERENCE = (DOCS / "reference.md").read_text()
CONFIGURATION = (DOCS / "configuration.md").read_text()
CONFIGS: dict[type[Settings], str] = {
    HubConfig: REFERENCE,
    RetryConfig: CONFIGURATION,
    ACKConfig: CONFIGURATION,
}
SETTINGS = [(cls, name) for cls in CONFIGS for name in cls.__struct_fields__]
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def section(text: str, title: str) -> str:
    """The text under a heading, up to the next one of the same level or a higher one."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*)", text, re.M | re.S)
    assert found, f"no section {title}"
    return re.split(rf"^#{{2,{len(found[1])}}} ", found[2], maxsplit=1, flags=re.M)[0]


def table(text: str) -> dict[str, list[str]]:
    """The cells of each row that begins with one name, by that name."""
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and (name := re.fullmatch(r"`(\w+)`", cells[0])):
            assert name[1] not in rows, f"{name[1]} is there twice"
            rows[name[1]] = cells[1:]
    return rows


def settings(cls: type[Settings]) -> dict[str, list[str]]:
    """The rows of the table of a class's settings, which is the first of its section."""
    return table(section(CONFIGS[cls], cls.__name__).partition("\n### ")[0])


def code(text: str) -> str:
    """All that stands in code: between backticks, or indented by four."""
    return "\n".join(spans(text))


def spans(text: str) -> list[str]:
    return [a or b for a, b in re.findall(r"`([^`\n]+)`|^ {4}(.+)", text, re.M)]


def is_named(name: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", code(text)) is not None


def value(cell: str) -> Any:
    """The value that a cell of a table stands for."""
    text = cell.strip("`")
    if power := re.fullmatch(r"2\^(\d+)", text):
        return 1 << int(power[1])
    number, _, unit = text.partition(" ")
    if unit in UNITS:
        return int(number) * UNITS[unit]
    if re.fullmatch(r"[\d,]+(\.\d+)?", text):
        text = text.replace(",", "")
    return eval(text, {})


def public_attributes(cls: type) -> list[str]:
    return [name for name in dir(cls) if not name.startswith("_")]


# --- settings ---


@pytest.mark.parametrize(
    ("cls", "name"), SETTINGS, ids=[f"{cls.__name__}.{name}" for cls, name in SETTINGS]
)
def test_a_setting_is_there_with_its_default_and_bounds(cls: type[Settings], name: str) -> None:
    rows = settings(cls)
    assert name in rows, f"{name} has no row in the table of {cls.__name__}"
    row = rows[name]
    default = getattr(cls(), name)
    assert value(row[0]) == default
    assert type(value(row[0])) is type(default)
    kind = kinds_of(cls)[name]
    if isinstance(kind.type, msgspec.inspect.IntType):
        words = "".join(f'"{word}", ' for word in kind.words)
        assert row[1].replace("`", "").startswith(words)
        low, _, high = row[1].replace("`", "").removeprefix(words).partition(" to ")
        assert (value(low), value(high)) == (kind.type.ge, kind.type.le)
    if cls is HubConfig:
        assert (row[2] == "yes") == kind.live
        assert row[2] in ("yes", "")
    assert row[-1], "what it means"


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda cls: cls.__name__)
def test_no_other_settings_are_there(cls: type[Settings]) -> None:
    assert set(settings(cls)) - set(cls.__struct_fields__) == set()


def test_what_can_be_chosen_is_there() -> None:
    for cls, name in SETTINGS:
        kind = kinds_of(cls)[name].type
        if isinstance(kind, msgspec.inspect.LiteralType):
            row = settings(cls)[name]
            # msgspec sorts them.
            assert sorted(map(value, row[1].split(", "))) == sorted(map(str, kind.values))


# --- names ---


@pytest.mark.parametrize("name", wsc_fast.__all__)
def test_a_public_name_is_there(name: str) -> None:
    assert is_named(name, REFERENCE)


@pytest.mark.parametrize("name", public_attributes(Hub))
def test_an_attribute_of_hub_is_there(name: str) -> None:
    assert is_named(name, section(REFERENCE, "Hub"))


@pytest.mark.parametrize("name", public_attributes(Client))
def test_an_attribute_of_client_is_there(name: str) -> None:
    assert is_named(name, section(REFERENCE, "Client"))


@pytest.mark.parametrize(
    "cls", [cls for cls in map(vars(wsc_fast).get, wsc_fast.__all__) if isinstance(cls, type)]
)
def test_an_error_is_there_with_its_bases(cls: type) -> None:
    if not issubclass(cls, wsc_fast.WSCError):
        return
    (row,) = re.findall(
        rf"^\| `{cls.__name__}`(?: \(([\w, ]+)\))? \| .+ \|$", section(REFERENCE, "Errors"), re.M
    )
    bases = [base.__name__ for base in cls.__bases__ if base not in (wsc_fast.WSCError, Exception)]
    assert row == ", ".join(bases)


@pytest.mark.parametrize("name", HubStats.__struct_fields__)
def test_a_field_of_the_stats_is_there_with_its_type(name: str) -> None:
    kind = inspect.get_annotations(HubStats)[name].replace("|", r"\|")
    assert f"`{name}: {kind}`" in section(REFERENCE, "HubStats")


def test_no_other_stats_are_there() -> None:
    named = re.findall(r"`(\w+): [^`]+`", section(REFERENCE, "HubStats"))
    assert sorted(named) == sorted(HubStats.__struct_fields__)


@pytest.mark.parametrize("kind", ["dropped", "rejected"])
def test_the_reasons_that_the_stats_tell_apart_are_there(kind: str) -> None:
    (row,) = re.findall(rf"^\| `{kind}: .*$", section(REFERENCE, "HubStats"), re.M)
    assert re.findall(r"`(\w+)`", row) == list(getattr(Hub().get_stats(), kind))


def test_each_reason_of_a_failure_is_there() -> None:
    assert all(is_named(reason.name, section(REFERENCE, "Errors")) for reason in SendFailureReason)
    failures = section((DOCS / "delivery.md").read_text(), "Failure handlers")
    assert all(is_named(reason.value, failures) for reason in SendFailureReason)


# --- the smaller classes ---


@pytest.mark.parametrize(
    ("cls", "title"),
    [
        (Request, "Request"),
        (PendingACK, "PendingACK"),
        (OfflineStore, "Offline stores"),
    ],
)
def test_what_a_class_has_is_there(cls: type, title: str) -> None:
    missing = [n for n in public_attributes(cls) if not is_named(n, section(REFERENCE, title))]
    assert missing == []


@pytest.mark.parametrize(
    ("cls", "title"),
    [
        (Identity, "Identity"),
        (Response, "Response"),
        (HubMessage, "HubMessage"),
        (ACKMessage, "ACKMessage"),
        (SendResult, "SendResult"),
        (SendAttempt, "SendResult"),
        (StoredMessage, "Offline stores"),
    ],
)
def test_a_field_of_a_struct_is_there(cls: type[msgspec.Struct], title: str) -> None:
    missing = [n for n in cls.__struct_fields__ if not is_named(n, section(REFERENCE, title))]
    assert missing == []


@pytest.mark.parametrize("cls", [Published, HistoryEntry, Counters], ids=lambda cls: cls.__name__)
def test_a_field_about_several_hubs_is_there(cls: Any) -> None:
    text = section(REFERENCE, "Several hubs")
    assert [each.name for each in fields(cls) if not is_named(each.name, text)] == []


@pytest.mark.parametrize(("enum", "title"), [(Priority, "HubMessage"), (AckStatus, "PendingACK")])
def test_a_member_of_an_enum_is_there(enum: Any, title: str) -> None:
    assert [m for m in enum if not is_named(m.name, section(REFERENCE, title))] == []


def signature(text: str, name: str) -> dict[str, str]:
    """Parameters and defaults of a signature on the page."""
    (found,) = re.findall(rf"^    {name}\(((?:.|\n {{4}})*?)\)(?: -> \w+)?$", text, re.M)
    function = f"def f({found}): pass"
    parsed = inspect.signature(_defined(function))
    return {
        p.name: "" if p.default is p.empty else repr(p.default) for p in parsed.parameters.values()
    }


def _defined(function: str) -> types.FunctionType:
    names: dict[str, Any] = {"Priority": Priority, "HubConfig": HubConfig}
    exec(compile("from __future__ import annotations\n" + function, "reference.md", "exec"), names)
    return typing.cast(types.FunctionType, names["f"])


@pytest.mark.parametrize(
    "cls",
    [
        Hub,
        Identity,
        Response,
        HubMessage,
        ACKMessage,
        SQLiteOfflineStore,
        RedisOfflineStore,
        RedisBus,
        LocalBus,
        MemoryOfflineStore,
        MemoryBus,
        TokenAuthenticator,
        JWTAuthenticator,
    ],
    ids=lambda cls: cls.__name__,
)
def test_the_arguments_of_a_constructor_are_there_with_their_defaults(cls: type) -> None:
    shown = signature(REFERENCE, cls.__name__)
    real = inspect.signature(cls).parameters.values()
    assert list(shown) == [p.name for p in real]
    for parameter in real:
        if shown[parameter.name] != "Ellipsis":  # ... stands for what is made each time
            default = "" if parameter.default is parameter.empty else repr(parameter.default)
            if default == "<factory>":
                default = repr(getattr(cls(), parameter.name))
            assert shown[parameter.name] == default


@pytest.mark.parametrize(("call", "method"), [("hub.run", Hub.run), ("await hub.start", Hub.start)])
def test_the_arguments_of_a_method_are_there_with_their_defaults(call: str, method: Any) -> None:
    _, *real = inspect.signature(method).parameters.values()
    assert signature(REFERENCE, call) == {p.name: repr(p.default) for p in real}


# --- links ---


ROOT_PAGES = [
    DOCS.parent / f"{name}.md" for name in ("README", "README.zh-CN", "CHANGELOG", "CONTRIBUTING")
]
PAGES = [*sorted(DOCS.rglob("*.md")), *ROOT_PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_links_between_the_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        other = page.parent / name if name else page
        assert other.exists(), target
        if anchor:
            assert anchor in anchors(other.read_text()), target


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for title in re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M
    ):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        unique, count = slug, 0
        while unique in found:
            count += 1
            unique = f"{slug}-{count}"
        found.add(unique)
    return found
