"""Long jobs that run in threads, and pages that see how far each of them is.

Run it with `python server.py`, and open http://127.0.0.1:8080.
"""

import argparse
import hashlib
import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from wsc_fast import Client, Hub, HubConfig, HubStateError, Request, RequestError, Response
from wsc_fast.demo import read_page

PAGE = read_page(Path(__file__).with_name("page.html"))
ROOM = "jobs"
MOST_JOBS = 20  # that wait or run; the newest ones that have ended are remembered, too
STEPS = 50


class Job:
    """One job, and how far it is. The threads write it, the loop reads it."""

    numbers = itertools.count(1)

    def __init__(self, rounds: int) -> None:
        self.id = next(self.numbers)
        self.rounds = rounds
        self.state = "waiting"  # then running; then done, cancelled or failed
        self.percent = 0
        self.result = ""
        self.cancelled = threading.Event()

    @property
    def ended(self) -> bool:
        return self.state not in ("waiting", "running")

    def as_dict(self) -> dict[str, Any]:
        names = ("id", "rounds", "state", "percent", "result")
        return {name: getattr(self, name) for name in names}


class Jobs:
    """Runs jobs two at a time, and tells the room of each change."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.jobs: dict[int, Job] = {}
        self.threads = ThreadPoolExecutor(max_workers=2)

    def start(self, rounds: int) -> Job:
        if sum(not job.ended for job in self.jobs.values()) >= MOST_JOBS:
            raise RequestError("busy", f"{MOST_JOBS} jobs wait or run: try again later")
        ended = [job.id for job in self.jobs.values() if job.ended]
        for job_id in ended[: max(0, len(self.jobs) - 2 * MOST_JOBS)]:
            del self.jobs[job_id]
        job = Job(rounds)
        self.jobs[job.id] = job
        self.tell(job)
        self.threads.submit(self.run, job)
        return job

    def run(self, job: Job) -> None:
        """The work, in a thread: it may block, and the hub takes its calls to the loop."""
        try:
            self._change(job, state="running")
            digest = b"work"
            for step in range(1, STEPS + 1):
                if job.cancelled.is_set():
                    self._change(job, state="cancelled")
                    return
                digest = hashlib.pbkdf2_hmac("sha256", digest, b"salt", job.rounds)
                self._change(job, percent=100 * step // STEPS)
            self._change(job, state="done", result=digest.hex()[:16])
        except HubStateError:
            pass  # the hub stops: nobody is there to be told
        except Exception as error:
            self._change(job, state="failed", result=str(error))

    def _change(self, job: Job, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(job, name, value)
        self.tell(job)

    def tell(self, job: Job) -> None:
        # From any thread. A page that falls behind needs the newest state of each job alone.
        self.hub.broadcast_to_room(ROOM, json.dumps(job.as_dict()), key=f"job:{job.id}")

    def stop(self) -> None:
        for job in self.jobs.values():
            job.cancelled.set()
        self.threads.shutdown(wait=False, cancel_futures=True)


def create_hub() -> Hub:
    hub = Hub(HubConfig(message_rate=20.0, rate_limit_action="pause", max_message_size=1_024))
    hub.keep(ROOM, size=1_000, ttl=3_600)  # a page that comes back gets the changes since
    jobs = Jobs(hub)
    hub.on_shutdown(jobs.stop)

    @hub.on_client_connected
    def connected(client: Client) -> None:
        hub.join_room(client.id, ROOM)

    @hub.on_request
    def answer(client: Client, data: Any) -> Any:
        match data:
            case {"start": int(rounds)} if 1 <= rounds <= 1_000_000:
                return jobs.start(rounds).id
            case {"cancel": int(job_id)} if job_id in jobs.jobs:
                jobs.jobs[job_id].cancelled.set()
                return job_id
        raise RequestError("not-understood", 'send {"start": ROUNDS} or {"cancel": ID}')

    @hub.route("/jobs")
    def listed(request: Request) -> list[dict[str, Any]]:
        return [job.as_dict() for job in jobs.jobs.values()]

    @hub.route("/")
    def page(request: Request) -> Response:
        return PAGE

    return hub


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    create_hub().run("127.0.0.1", parser.parse_args().port)
