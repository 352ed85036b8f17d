"""Part 6: several servers that are one. Start it on as many ports or machines as you like."""

import os

from arrive import deliver_letters
from browser import hub

from wsc_fast import RedisBus

hub.set_bus(RedisBus(os.environ.get("BUS", "redis://127.0.0.1:6379/0")))
deliver_letters(hub)  # letters wait on the server of the bus

if __name__ == "__main__":
    hub.run(port=int(os.environ.get("PORT", "8080")))
