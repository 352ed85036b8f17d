"""A client that acknowledges: it prints each message once, and confirms or refuses it.

Run it with `python client.py ann`, beside server.py. It needs `pip install websockets`.
"""

import argparse
import json

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("user")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--refuse", action="store_true", help="acknowledge as failed")
    given = parser.parse_args()
    answers: dict[str, str] = {}  # by the id of the message: a copy gets the same answer
    with connect(f"ws://127.0.0.1:{given.port}/ws?user={given.user}") as socket:
        try:
            for text in socket:
                message = json.loads(text)
                if message["id"] not in answers:
                    print(message["content"], flush=True)
                    answer = {"type": "ack", "message_id": message["id"]}
                    if given.refuse:
                        answer |= {"status": "failed", "error": "not wanted"}
                    answers[message["id"]] = json.dumps(answer)
                socket.send(answers[message["id"]])
        except (ConnectionClosed, KeyboardInterrupt):
            print("the end")


if __name__ == "__main__":
    main()
