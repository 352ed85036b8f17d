"""Django with a chat: makes the tables, and serves application and hub on one port.

Run it with `python server.py`, and open http://127.0.0.1:8000 in two windows.
"""

import argparse
import os

import django
import uvicorn

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
django.setup()

# Both read the settings, so that they come after the setup. A project has them in its asgi.py.
from chat.live import hub  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.core.management import call_command  # noqa: E402

application = get_asgi_application()
ws = hub.uvicorn(path="/ws")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    call_command("migrate", run_syncdb=True, verbosity=0)
    uvicorn.run(application, host="127.0.0.1", port=given.port, ws=ws)
