"""Django, under any WSGI or ASGI server: views that publish. `python django_view.py` serves it.

In a project the settings and the views stand in their own files.
"""

import os
from wsgiref.simple_server import make_server

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.http import require_POST

from wsc_fast.publish import Publisher

settings.configure(ALLOWED_HOSTS=["127.0.0.1"], ROOT_URLCONF=__name__)
django.setup()

# One for all threads and for all processes that the server forks.
publisher = Publisher(os.environ.get("BUS", "redis://127.0.0.1:6379/0"))


@require_POST
def ship(request: HttpRequest, order: int) -> JsonResponse:
    # In a transaction: transaction.on_commit(lambda: publisher.room(...)).
    published = publisher.room(f"order:{order}", "shipped", idempotency_key=f"shipped-{order}")
    return JsonResponse({"position": published.position, "duplicate": published.duplicate})


@require_POST
def notify(request: HttpRequest, user: str) -> JsonResponse:
    told = publisher.user(user, "your parcel is here", require_ack=True)
    return JsonResponse({"hubs": told.hubs, "stored": told.stored})


urlpatterns = [path("orders/<int:order>/ship", ship), path("users/<str:user>/notify", notify)]
application = get_wsgi_application()

if __name__ == "__main__":
    make_server("127.0.0.1", int(os.environ.get("PORT", "8000")), application).serve_forever()
