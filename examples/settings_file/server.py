"""All settings come from a file. SIGHUP has it read again while the clients stay connected.

Run it with `python server.py`, change settings.toml, and `kill -HUP` the process.
"""

import argparse
import asyncio
import logging
import signal
from pathlib import Path
from typing import Any

from wsc_fast import (
    ACKConfig,
    ConfigError,
    Hub,
    HubConfig,
    HubMessage,
    Identity,
    Request,
    RetryConfig,
)

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
log = logging.getLogger("settings")
HERE = Path(__file__).parent


def create_hub(path: Path) -> Hub:
    """A hub with the settings of a file."""
    # For a trial the query is believed. Yours takes a token: wsc_fast.auth has ready-made ones.
    hub = Hub(
        HubConfig.from_file(path),
        authenticate=lambda request: Identity(request.query.get("user", "somebody")),
    )
    hub.set_retry_config(RetryConfig.from_file(path))
    hub.enable_ack(ACKConfig.from_file(path))  # these hold until the end of the process

    def read_again() -> None:
        try:
            hub_config, retry_config = HubConfig.from_file(path), RetryConfig.from_file(path)
            hub.set_config(hub_config)  # refuses settings that a running hub cannot change
            hub.set_retry_config(retry_config)
        except ConfigError as error:
            log.error("the settings stay as they are: %s", error)
        else:
            log.info("settings read again: max_retries is %d", retry_config.max_retries)

    @hub.on_startup
    async def listen_for_hangup() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, read_again)

    @hub.route("/users/{user}/messages", methods=["POST"])
    async def send(request: Request) -> dict[str, Any]:
        message = HubMessage(content=request.body.decode())
        result = await hub.send_to_user_with_retry(request.path_params["user"], message)
        return {"success": result.success, "retries": result.total_retries}

    return hub


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--settings", type=Path, default=HERE / "settings.toml")
    given = parser.parse_args()
    try:
        hub = create_hub(given.settings)
    except ConfigError as error:
        raise SystemExit(str(error)) from None
    hub.run("127.0.0.1", given.port)


if __name__ == "__main__":
    main()
