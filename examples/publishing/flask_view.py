"""Flask: views that publish. `python flask_view.py` serves it."""

import os

from flask import Flask, Response, jsonify

from wsc_fast.publish import Publisher

app = Flask(__name__)
# One for all threads and for all processes that the server forks.
publisher = Publisher(os.environ.get("BUS", "redis://127.0.0.1:6379/0"))


@app.post("/orders/<int:order>/ship")
def ship(order: int) -> Response:
    published = publisher.room(f"order:{order}", "shipped", idempotency_key=f"shipped-{order}")
    return jsonify(position=published.position, duplicate=published.duplicate)


@app.post("/users/<user>/notify")
def notify(user: str) -> Response:
    told = publisher.user(user, "your parcel is here", require_ack=True)
    return jsonify(hubs=told.hubs, stored=told.stored)


if __name__ == "__main__":
    app.run("127.0.0.1", int(os.environ.get("PORT", "8000")))
