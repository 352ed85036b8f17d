"""Publishing from a process without a hub: a web application, a task queue, a cron job.

    from wsc_fast.publish import Publisher

    publisher = Publisher("redis://127.0.0.1:6379/0")
    publisher.room("chat:7", "Your order has been sent.", idempotency_key="order-17")
    publisher.user("ann", "Your parcel is here.", require_ack=True)

Needs redis-py and nothing that is compiled. `AsyncPublisher` has the same calls for asyncio.
"""

import typing

if typing.TYPE_CHECKING:
    from wsc_fast.bus.base import HistoryEntry, Member, Published
    from wsc_fast.publish.asynchronous import AsyncPublisher
    from wsc_fast.publish.messages import Batch
    from wsc_fast.publish.publisher import Publisher
    from wsc_fast.publish.users import Told

__all__ = ["AsyncPublisher", "Batch", "HistoryEntry", "Member", "Published", "Publisher", "Told"]

_MODULES = {
    "AsyncPublisher": "wsc_fast.publish.asynchronous",
    "Batch": "wsc_fast.publish.messages",
    "HistoryEntry": "wsc_fast.bus.base",
    "Member": "wsc_fast.bus.base",
    "Published": "wsc_fast.bus.base",
    "Publisher": "wsc_fast.publish.publisher",
    "Told": "wsc_fast.publish.users",
}


def __getattr__(name: str) -> object:
    """Imports what is used: asyncio for AsyncPublisher alone."""
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(module), name)
