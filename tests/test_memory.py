"""When memory runs out: each allocation fails in its turn, and is survived or a clean MemoryError."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.model import Model
from tests.support import CLOSE, TEXT, RawClient, encode, eventually, known, named, running
from wsc_fast import Hub, HubConfig
from wsc_fast._core import DEBUG_BUILD
from wsc_fast._core.memory import fail_allocation, live_objects

ROOT = Path(__file__).parent.parent
