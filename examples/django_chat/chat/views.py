"""The views: the page, the login, the history. The hub is told of a logout."""

import json
from pathlib import Path

from django.contrib import auth
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_POST

from chat.live import hub
from chat.models import Message
from wsc_fast.demo import read_page

PAGE = read_page(Path(__file__).parent.parent / "page.html")
HISTORY = 50


@ensure_csrf_cookie
def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(PAGE.body, headers=PAGE.headers)


@require_POST
def login(request: HttpRequest) -> JsonResponse:
    """For a trial, a name that is new becomes a user. Yours has a form of its own for that."""
    given = json.loads(request.body)
    name, password = str(given["name"]).strip()[:40], str(given["password"])
    if not name or not password:
        return JsonResponse({"error": "a name and a password are needed"}, status=400)
    if not User.objects.filter(username=name).exists():
        User.objects.create_user(name, password=password)
    user = auth.authenticate(request, username=name, password=password)
    if user is None:
        return JsonResponse({"error": "wrong password"}, status=401)
    auth.login(request, user)
    return JsonResponse({"name": name})


@require_POST
def logout(request: HttpRequest) -> JsonResponse:
    name = request.user.get_username()
    auth.logout(request)
    if name:
        hub.disconnect_user(name, 4401, "logged out")  # a plain view runs in a thread: that is fine
    return JsonResponse({})


def me(request: HttpRequest) -> JsonResponse:
    """The user of the session. The page's client asks, too, when the hub has refused it."""
    name = request.user.get_username()
    return JsonResponse({"name": name}, status=200 if name else 401)


def history(request: HttpRequest) -> JsonResponse:
    """The newest messages, the oldest first."""
    if not request.user.is_authenticated:
        return JsonResponse({}, status=401)
    newest = Message.objects.select_related("user").order_by("-pk")[:HISTORY]
    return JsonResponse({"messages": [message.as_dict() for message in reversed(newest)]})


urlpatterns = [
    path("", page),
    path("login", login),
    path("logout", logout),
    path("me", me),
    path("history", history),
]
