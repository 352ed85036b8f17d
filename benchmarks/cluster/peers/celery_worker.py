"""A Celery worker that publishes to a room or to users, one way or another, by a task.

    WAY=wsc|wsc-users|socketio BUS=redis://… ROOM=room USERS=1000 celery -A celery_worker worker

The task `publish(count, pause)` publishes so many messages, each with the time of its call.
"""

import os
import time

from celery import Celery

WAY, BUS, ROOM = os.environ["WAY"], os.environ["BUS"], os.environ["ROOM"]
USERS = [f"u{number}" for number in range(int(os.environ["USERS"]))]
app = Celery("bench", broker=BUS)


def make():
    """The call that publishes a text."""
    if WAY == "socketio":
        import socketio

        manager = socketio.RedisManager(BUS, write_only=True)
        return lambda text: manager.emit("m", text, room=ROOM)
    from wsc_fast.publish import Publisher

    publisher = Publisher(BUS)
    if WAY == "wsc":
        return lambda text: publisher.room(ROOM, text)

    def to_users(text):
        with publisher.batch() as batch:
            for user in USERS:
                batch.user(user, text)

    return to_users


publish_text = make()


@app.task(name="publish")
def publish(count, pause):
    for _ in range(count):
        publish_text(f"{time.monotonic_ns():020d}".ljust(128, "x"))
        time.sleep(pause)
