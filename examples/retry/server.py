"""Sends to a user who may be away, tries again with growing delays, and prints each attempt.

Run it with `python server.py`, then send with
`curl -d 'how are you?' http://127.0.0.1:8080/users/ann/messages`.
"""

import argparse
from typing import Any

from wsc_fast import Hub, HubMessage, Identity, Request, RetryConfig, SendResult

# For a trial the query is believed. Yours takes a token: wsc_fast.auth has ready-made ones.
hub = Hub(authenticate=lambda request: Identity(request.query.get("user", "somebody")))
hub.set_retry_config(
    RetryConfig(
        max_retries=3,
        base_delay=0.25,  # seconds before the first retry: 0.25, 0.5, 1
        backoff_factor=2.0,
        max_delay=2.0,
        # By default a user who is away is no reason to try again. Here the user may be in a tunnel.
        retryable_errors=("queue_full", "timeout", "conn_error", "channel_closed", "user_offline"),
        non_retryable_errors=("permission", "validation"),
    )
)


@hub.route("/users/{user}/messages", methods=["POST"])
async def send(request: Request) -> dict[str, Any]:
    user = request.path_params["user"]
    message = HubMessage(content=request.body.decode())
    result = await hub.send_to_user_with_retry(user, message)
    print_attempts(user, result)
    return {
        "success": result.success,
        "retries": result.total_retries,
        "seconds": round(result.total_time, 3),
        "error": str(result.final_error) if result.final_error else None,
    }


def print_attempts(user: str, result: SendResult) -> None:
    print(f"message to {user}:")
    for attempt in result.attempts:
        outcome = "sent" if attempt.success else f"{type(attempt.error).__name__}: {attempt.error}"
        print(f"  {attempt.start_time:%H:%M:%S.%f} attempt {attempt.attempt_number}: {outcome}")
    end = "delivered" if result.success else "given up"
    print(f"  {end} after {result.total_retries} retries, {result.total_time:.2f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    hub.run("127.0.0.1", parser.parse_args().port)
