"""Traces by OpenTelemetry: spans around callbacks, and around sends to users.

The names follow OpenTelemetry's conventions for messaging as far as they fit. Nothing of this costs
anything before `Hub.enable_tracing`: callbacks are wrapped then, and not asked each time.

The trace of a client: the headers of its upgrade may carry a context (`traceparent`, `baggage`),
which the context of its callbacks keeps. The span of `on_client_connected` is a child of it. The
others are linked to it: a connection may last for days, and a trace should not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from wsc_fast.runtime.inbox import is_awaitable

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanKind, TracerProvider

    from wsc_fast._core.connection import Client

# Event -> the name of its span, and what the conventions call the operation.
_CALLBACKS = {
    "connected": ("connect client", "connect"),
    "message": ("process message", "process"),
    "messages": ("process messages", "process"),
    "request": ("process request", "process"),
    "join_request": ("decide about join", "decide"),
    "room_joined": ("join room", "join"),
    "room_left": ("leave room", "leave"),
    "disconnected": ("disconnect client", "disconnect"),
}
_OF_ROOMS = ("room_joined", "room_left", "join_request")
_SYSTEM = {"messaging.system": "wsc_fast"}


class Tracing:
    """The traces of one hub.

    Args:
        tracer_provider: OpenTelemetry's; None: the global one.

    Raises:
        ImportError: opentelemetry-api is not installed.

    Thread-safety: any thread.
    """

    def __init__(self, tracer_provider: TracerProvider | None) -> None:
        try:
            from opentelemetry import context, propagate, trace
        except ImportError as error:
            raise ImportError("enable_tracing needs opentelemetry-api: wsc_fast[otel]") from error
        self._context = context
        self._propagate = propagate
        self._trace = trace
        self._tracer = trace.get_tracer("wsc_fast", tracer_provider=tracer_provider)

    # --- clients ---

    def upgraded(self, headers: Mapping[str, str]) -> None:
        """Keeps the context of an upgrade; called in the context of the client to be."""
        lowered = {name.lower(): value for name, value in headers.items()}
        self._context.attach(self._propagate.extract(lowered))

    def wrap_callback(self, event: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        """A callback with a span around each of its calls; an async one is in it to its end."""
        if event not in _CALLBACKS:
            return fn
        if iscoroutinefunction(fn):

            @wraps(fn)
            async def traced_async(client: Client, *args: Any) -> Any:
                with self._span_of_callback(event, client, args):
                    return await fn(client, *args)

            return traced_async

        @wraps(fn)
        def traced(client: Client, *args: Any) -> Any:
            with self._span_of_callback(event, client, args, end_on_exit=False) as span:
                try:
                    result = fn(client, *args)
                except BaseException as error:
                    self._record(span, error)
                    span.end()
                    raise
            if is_awaitable(result):
                return self._finish(span, result)
            span.end()
            return result

        return traced

    async def _finish(self, span: Span, result: Awaitable[Any]) -> Any:
        with self._trace.use_span(span, end_on_exit=True):
            return await result

    @contextmanager
    def _span_of_callback(
        self, event: str, client: Client, args: tuple[Any, ...], *, end_on_exit: bool = True
    ) -> Iterator[Span]:
        name, operation = _CALLBACKS[event]
        trace = self._trace
        attributes: dict[str, Any] = {
            **_SYSTEM,
            "messaging.operation.name": operation,
            "messaging.client.id": client.id,
            "user.id": client.user_id,
            "client.address": client.remote_address,
        }
        if event == "message":
            attributes["messaging.operation.type"] = "process"
            attributes["messaging.message.body.size"] = _size_of(args[0])
        elif event == "messages":
            attributes["messaging.operation.type"] = "process"
            attributes["messaging.batch.message_count"] = len(args[0])
        elif event in _OF_ROOMS:
            attributes["messaging.destination.template"] = "room/{room_id}"
            attributes["messaging.destination.name"] = f"room/{args[0]}"
        context = self._context.get_current()
        links = []
        upgrade = trace.get_current_span(context).get_span_context()
        if event != "connected" and upgrade.is_valid:
            links.append(trace.Link(upgrade))
            context = trace.set_span_in_context(trace.INVALID_SPAN, context)
        span = self._tracer.start_span(name, context, trace.SpanKind.CONSUMER, attributes, links)
        with trace.use_span(
            span,
            end_on_exit=end_on_exit,
            record_exception=end_on_exit,
            set_status_on_exception=end_on_exit,
        ):
            yield span

    def _record(self, span: Span, error: BaseException) -> None:
        span.record_exception(error)
        status = self._trace.StatusCode.ERROR
        span.set_status(self._trace.Status(status, f"{type(error).__name__}: {error}"))

    # --- sends ---

    def wrap_send(self, send: Callable[..., Any]) -> Callable[..., Any]:
        """A method `send(user_id, message)` of a hub with a span around each of its calls."""
        if iscoroutinefunction(send):

            @wraps(send)
            async def traced_async(user_id: str, message: Any) -> Any:
                with self._span_of_send(user_id, message) as span:
                    result = await send(user_id, message)
                    if result.final_error is not None:
                        self._record(span, result.final_error)
                    return result

            return traced_async

        def traced(user_id: str, message: Any) -> Any:
            with self._span_of_send(user_id, message):
                return send(user_id, message)

        traced.__name__ = send.__name__
        traced.__doc__ = send.__doc__
        return traced

    def _span_of_send(self, user_id: str, message: Any) -> Any:
        kind: SpanKind = self._trace.SpanKind.PRODUCER
        attributes = {
            **_SYSTEM,
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.destination.template": "user/{user_id}",
            "messaging.destination.name": f"user/{user_id}",
        }
        if isinstance(message_id := getattr(message, "id", None), str) and message_id:
            attributes["messaging.message.id"] = message_id
        return self._tracer.start_as_current_span(
            "send user/{user_id}", kind=kind, attributes=attributes
        )


def _size_of(message: str | bytes) -> int:
    return (
        len(message) if isinstance(message, bytes) or message.isascii() else len(message.encode())
    )


# The methods of a hub that `Tracing.wrap_send` wraps.
SENDS = ("send_to_user", "send_to_user_with_retry", "send_ack_message_to_user")
