"""Celery: a task that publishes how far it is, and one that notifies a user.

celery -A celery_task worker
python -c 'from celery_task import pack, bill; pack.delay(17); bill.delay("ann", 17)'
"""

import os

from celery import Celery

from wsc_fast import BusUnavailableError
from wsc_fast.publish import Publisher

BUS = os.environ.get("BUS", "redis://127.0.0.1:6379/0")
app = Celery("shop", broker=BUS)
# Made before Celery forks its workers: each of them has connections of its own.
publisher = Publisher(BUS)


@app.task(bind=True, autoretry_for=(BusUnavailableError,), retry_backoff=True, max_retries=5)
def pack(self, order: int) -> None:
    # A task may run twice. The keys see to it that each message is published once.
    for done in (50, 100):
        publisher.room(
            f"order:{order}", f"packed {done} %", idempotency_key=f"packed-{done}-{order}"
        )


@app.task(bind=True, autoretry_for=(BusUnavailableError,), retry_backoff=True, max_retries=5)
def bill(self, user: str, order: int) -> None:
    # It waits for a user who is away. Under its id it is stored once, however often the task runs.
    publisher.user(user, f"The bill of order {order}", require_ack=True, message_id=f"bill-{order}")
