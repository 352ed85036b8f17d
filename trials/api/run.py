"""Has schemathesis try the HTTP API of a hub by its own OpenAPI document.

    python -m trials.api.run [--program PATH] [--examples NUMBER] [--seed NUMBER]

Schemathesis is a program of its own, for which `pip install schemathesis` in an environment of its
own is best. It sends requests that the document allows and others that it forbids, and compares the
answers with the document. Prints its report; the exit status is its own.

Three things are not asked of the hub: 405 for methods that HTTP/1.1 does not know, which get 400;
that data which may be right is right (no user is connected, and no history reaches back); and 401
for each wrong key, since there are many a second from one address.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from wsc_fast import Hub, Identity
from wsc_fast.api import guard
from wsc_fast.testing import running

KEY = "key-of-schemathesis"
SETTINGS = f"""
[auth.openapi]
bearer = {{ bearer = "{KEY}" }}
[checks]
unsupported_method.enabled = false
positive_data_acceptance.expected-statuses = ["2xx", "404", "410"]
"""


async def tried(program: str, examples: int, seed: int) -> int:
    """The exit status of schemathesis."""
    guard.WRONG_KEYS = 0.0
    hub = Hub(authenticate=lambda request: Identity("user"))
    hub.keep("*")
    hub.presence("*")
    hub.enable_ack()
    hub.enable_api(keys=KEY, rate=0)
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "schemathesis.toml"
        settings.write_text(SETTINGS)
        async with running(hub):
            url = f"http://127.0.0.1:{hub.port}/api"
            process = await asyncio.create_subprocess_exec(
                *(program, f"--config-file={settings}", "run", f"{url}/openapi.json"),
                *(f"--url={url}", f"--header=Authorization: Bearer {KEY}"),
                *(f"--max-examples={examples}", f"--seed={seed}"),
                cwd=folder,
            )
            return await process.wait()


def main() -> int:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--program", default="schemathesis", help="the program to run")
    parser.add_argument("--examples", type=int, default=50, help="of each operation")
    parser.add_argument("--seed", type=int, default=1, help="of what is sent")
    options = parser.parse_args()
    return asyncio.run(tried(options.program, options.examples, options.seed))


if __name__ == "__main__":
    raise SystemExit(main())
