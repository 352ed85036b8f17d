"""The tasks: Celery's workers run them, and tell the user how far they are.

They import no hub: a Publisher reaches the user over Redis, on whichever hub he is.
"""

import os
import time

from celery import Celery, Task

from wsc_fast import BusUnavailableError, HubMessage
from wsc_fast.publish import Publisher

BUS = os.environ.get("BUS", "redis://127.0.0.1:6379/0")

app = Celery("reports", broker=BUS)
app.conf.broker_connection_retry_on_startup = True
publisher = Publisher(BUS)  # of all tasks; safe when Celery forks its workers


@app.task(bind=True, autoretry_for=(BusUnavailableError,), retry_backoff=True, max_retries=5)
def make_report(self: Task, user: str, title: str, seconds: float = 2.0) -> None:
    for percent in (25, 50, 75):
        time.sleep(seconds / 4)  # yours works here
        # At most once, and to nobody where the user is away: the next one says more.
        done = {"title": title, "percent": percent}
        publisher.user(user, HubMessage(type="progress", data=done))
    time.sleep(seconds / 4)
    # It waits for a user who is away. A task may run twice: under its id it is stored once.
    message_id = f"report-{self.request.id}"
    publisher.user(user, f"The report on {title} is ready", require_ack=True, message_id=message_id)
