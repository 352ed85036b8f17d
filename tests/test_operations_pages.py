"""Pages that people read at night name metrics, settings, calls and log lines that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_reference import is_named
from wsc_fast import ACKConfig, HubConfig, RetryConfig

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FOLDERS = ("concepts", "operations", "tutorial", "migration")
PAGES = [
    *sorted(path for folder in FOLDERS for path in (DOCS / folder).glob("*.md")),
    DOCS / "faq.md",
    DOCS / "index.md",
]
METRICS = (DOCS / "metrics.md").read_text()
EVENTS = set(re.findall(r"`(\w+)`", (DOCS / "how-to/log.md").read_text()))
REFERENCE = "\n".join(
    (DOCS / name).read_text()
    for name in ("reference.md", "configuration.md", "security.md", "http-api.md")
)
SETTINGS = {
    *HubConfig.__struct_fields__,
    *RetryConfig.__struct_fields__,
    *ACKConfig.__struct_fields__,
}


def named(path: Path) -> str:
    return str(path.relative_to(DOCS))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_metric_that_is_named_is_one(page: Path) -> None:
    # wsc_fast is the package.
    names = set(re.findall(r"\bwsc_(?!fast\b)[a-z_]+[a-z]\b", page.read_text()))
    assert [name for name in names if f"`{name}" not in METRICS] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_variable_that_is_named_is_a_setting(page: Path) -> None:
    names = set(re.findall(r"\bWSC_(?:ACK_)?([A-Z_]+[A-Z])\b", page.read_text()))
    assert {name.lower() for name in names} <= SETTINGS


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_call_that_is_named_is_one(page: Path) -> None:
    calls = set(re.findall(r"\b(?:hub|HubStats|HubConfig)\.(\w+)", page.read_text()))
    assert [name for name in calls if not is_named(name, REFERENCE)] == []


def test_the_symptoms_name_log_lines_and_settings() -> None:
    page = (DOCS / "operations/troubleshooting.md").read_text()
    spans = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)(?:=[^`]*)?`", page))
    known = EVENTS | SETTINGS
    missing = [name for name in spans if name not in known and not is_named(name, REFERENCE)]
    assert len(spans) > 20
    # Of a manager of containers.
    assert missing == ["stop_grace_period"]


def test_each_code_of_the_symptoms_is_one_that_the_hub_sends() -> None:
    page = (DOCS / "operations/troubleshooting.md").read_text()
    codes = set(re.findall(r"^\| (\d{4})\b", page, re.M))
    assert len(codes) > 6
    reference = (DOCS / "reference.md").read_text()
    sent = set(re.findall(r"^\| (\d{4}) \|", reference, re.M)) | {"1006"}
    assert codes <= sent
