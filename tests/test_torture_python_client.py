"""A short `python -m trials.clients.python_run`; test_torture_clients.py tests its verdict."""

from __future__ import annotations

import pytest

from tests.played import play
from tests.redis_server import PROGRAM
from trials.clients import run
from trials.clients.hubs import ROOMS

RUN = "trials.clients.python_run"


@pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed")
def test_no_message_is_missing_in_silence_over_three_hubs_on_redis() -> None:
    status, rows, said = play(RUN, "--quick", "--scenario", "three", timeout=100)
    assert status == 0, said
    (row,) = rows
    assert int(row["connections"]) > 2, said
    assert int(row["requests"]) > 3, said
    # Two more to each room once the client is back.
    assert int(row["messages"]) == run.QUICK.messages + 2 * len(ROOMS), said
