"""Hub, the face: what users call. It makes the parts of a hub, and joins them.

    engine       clients, users, rooms, sends: compiled. `Calls`, the first base of Hub, holds it
                 and calls it in C, so that no send goes through Python
    listener     from bind to an accepted socket
    requests     each connection until it is upgraded; `policy` decides, by what `site` serves
    admission    from the upgrade to the client
    callbacks    calling the application
    delivery     retries, acknowledgements, failure handlers
    observing    metrics and traces
    life         start, drain, stop

No part knows the hub: each is given what it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from ssl import SSLContext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from wsc_fast._core.connection import Client
from wsc_fast._core.poller import Poller
from wsc_fast._core.upgrade import CommonUpgrade
from wsc_fast._core.upward import join
from wsc_fast.adapters import picows
from wsc_fast.adapters.door import Door
from wsc_fast.api.facade import ApiFace
from wsc_fast.api.needs import Needs as ApiNeeds
from wsc_fast.bus.base import Bus
from wsc_fast.cluster.facade import ClusterFace, chosen_bus
from wsc_fast.cluster.heads import IN_QUERY, decode_head, without_heads
from wsc_fast.cluster.node import Needs as NodeNeeds
from wsc_fast.cluster.node import Node
from wsc_fast.config import HubConfig
from wsc_fast.config.kinds import kinds_of
from wsc_fast.console.facade import ConsoleFace
from wsc_fast.delivery.delivery import Delivery
from wsc_fast.delivery.facade import DeliveryFace
from wsc_fast.delivery.needs import Needs as DeliveryNeeds
from wsc_fast.errors import ConfigError, HubStateError, ValidationError
from wsc_fast.listen.arguments import check_listen_arguments
from wsc_fast.listen.listener import Listener
from wsc_fast.listen.needs import Needs as ListenerNeeds
from wsc_fast.listen.sockets import Given, Host
from wsc_fast.messages import message_forms
from wsc_fast.observe.counting import Counting
from wsc_fast.observe.facade import ObserveFace
from wsc_fast.observe.needs import Needs as ObserveNeeds
from wsc_fast.runtime.callback_facade import CallbackFace
from wsc_fast.runtime.callbacks import Callbacks
from wsc_fast.runtime.facade import LifeFace
from wsc_fast.runtime.heartbeat import Heartbeat
from wsc_fast.runtime.hooks import LifeHooks
from wsc_fast.runtime.inbox import Inbox
from wsc_fast.runtime.inbox import Needs as InboxNeeds
from wsc_fast.runtime.life import Life, Parts
from wsc_fast.runtime.lines import OverloadLines
from wsc_fast.runtime.process import FileLimit, OwnLog
from wsc_fast.runtime.runner import Runner, Served
from wsc_fast.runtime.state import State
from wsc_fast.runtime.tasks import Tasks
from wsc_fast.runtime.threads import ThreadCalls
from wsc_fast.stats import client_stats
from wsc_fast.upgrade.admission import Admission
from wsc_fast.upgrade.admission import Needs as AdmissionNeeds
from wsc_fast.upgrade.facade import UpgradeFace
from wsc_fast.upgrade.handshake import Requests
from wsc_fast.upgrade.policy import Policy
from wsc_fast.upgrade.refusals import Refusals
from wsc_fast.upgrade.request import Authenticate
from wsc_fast.upgrade.site import Site

if TYPE_CHECKING:
    from wsc_fast.console.needs import Needs as ConsoleNeeds

TransportName = Literal["hub", "loop", "picows"]

# Descriptors that a process needs besides its connections: the application's, the stores'.
_OTHER_FILES = 1_024


class Hub(
    ApiFace,
    ConsoleFace,
    ObserveFace,
    ClusterFace,
    DeliveryFace,
    UpgradeFace,
    CallbackFace,
    LifeFace,
):
    """A WebSocket hub: holds the connections, and moves messages to clients, users and rooms.

    Args:
        config: settings; see HubConfig.
        authenticate: `authenticate(request) -> Identity | None`, plain or async; None refuses: with
            401, or with close code 4401 after an async one. Without it every client is anonymous:
            a fresh id, and `user_id` equal to it.
        authorize_join: `authorize_join(client, room_id) -> bool`, plain: whether `join_room` may
            make the client a member.
        authorize_publish: `authorize_publish(client, message) -> bool`, plain: whether a message of
            the client may go to `on_message_received`. Other messages are counted and dropped, and
            the failure handlers hear of them (reason `permission`).
        bus: connects the hub with others, and keeps the histories of kept rooms (see `keep`): a
            RedisBus or a MemoryBus of the hub's own. None: the hub is alone, and `keep` makes a
            MemoryBus. "local" is for hubs of one machine: the first of them starts a valkey-server
            or redis-server, and all those made by the code of this file are one.

    Thread-safety: every method may be called from any thread; off the loop's thread it runs on the
    loop, and returns or raises as it would there. Source: go-wsc `NewHub`.
    """

    def __init__(
        self,
        config: HubConfig | None = None,
        *,
        authenticate: Authenticate | None = None,
        authorize_join: Callable[[Client, str], bool] | None = None,
        authorize_publish: Callable[[Client, str | bytes], bool] | None = None,
        bus: Bus | str | None = None,
    ) -> None:
        super().__init__()
        self._engine.set_forms(message_forms)
        self._config = HubConfig()
        self._engine.set_client_stats(client_stats)
        self._engine.set_heads(decode_head, without_heads)
        self._runner: Runner | None = None  # while `run` runs
        # Of the hub itself the parts get what they need, and nothing else.
        engine = self._engine
        settings: Callable[[], HubConfig] = partial(getattr, self, "_config")
        state, files, site = State(), FileLimit(), Site()
        report: Callable[[BaseException], None] = lambda error: callbacks.report(None, error)  # noqa: E731
        tasks = Tasks(engine, report)
        hooks = LifeHooks(report, tasks.has_started)
        calls = ThreadCalls(engine, lambda: settings().thread_call_timeout)
        paused: set[Inbox] = set()
        delivery = Delivery(
            DeliveryNeeds(
                engine=engine,
                settings=settings,
                knows_users=lambda: authenticate is not None,
                watch_clients=lambda acks: admission.watch(acks),
                paused=paused,
                report=report,
                others=lambda: node.users,
                store_on_bus=lambda: node.offline_store(),
            ),
            state,
            calls,
        )
        callbacks = Callbacks(
            engine,
            tasks,
            InboxNeeds(
                settings=settings,
                awaits_acknowledgement=delivery.awaits_acknowledgement,
                paused=paused,
                gone=lambda client: admission.leave_address(client),
            ),
            join=self.join_room,
            leave=self.leave_room,
            authorize_join=authorize_join,
            authorize_publish=authorize_publish,
            denied=delivery.denied,
        )
        listener = Listener(
            ListenerNeeds(
                settings=settings,
                deadlines=engine.deadlines,
                make_connection=partial(Client, engine),
                make_poller=lambda: Poller(engine, common_upgrade()),
                count_limit=engine.count_limit,
                count_rejected=engine.count_rejected,
                report=report,
                log_out_of_files=files.log,
            )
        )
        refusals = Refusals(engine, settings)
        admission = Admission(
            engine,
            callbacks,
            tasks,
            state,
            AdmissionNeeds(
                settings=settings,
                nobody_left=lambda: self._life.nobody_left(),
                refusals=refusals,
                greet=lambda client: node.greet(client),
                disconnect_elsewhere=lambda *what: node.disconnect_elsewhere(*what),
            ),
        )
        policy = Policy(
            engine,
            state,
            admission,
            site,
            settings,
            refusals,
            authenticate=authenticate,
            report=report,
            shares_port=lambda: listener.shares_port,
        )
        requests = Requests(engine, state, tasks, policy, files, settings)
        common_upgrade: Callable[[], CommonUpgrade] = lambda: CommonUpgrade(  # noqa: E731
            engine,
            policy,
            requests,
            state,
            files,
            settings,
            callbacks.inboxes.outlasting,
            site.path or "",
            IN_QUERY,
        )
        chosen = None if bus is None else chosen_bus(bus)
        node = Node(
            engine,
            chosen,
            NodeNeeds(
                calls=calls,
                tasks=tasks,
                settings=settings,
                state=state,
                knows_users=authenticate is not None,
                watch_clients=callbacks.watch_clients,
                watch_rooms=callbacks.watch_rooms,
                report=report,
                not_published=delivery.not_published,
                deliveries=delivery,
                disconnect=admission.disconnect_user,
                per_user=admission.per_user,
                name_clients=admission.name_clients,
            ),
        )
        self._parts = parts = Parts(
            engine=engine,
            state=state,
            listener=listener,
            site=site,
            requests=requests,
            admission=admission,
            callbacks=callbacks,
            tasks=tasks,
            delivery=delivery,
            node=node,
            hooks=hooks,
            calls=calls,
            heartbeat=Heartbeat(engine, settings, OverloadLines(engine, settings).look),
            files=files,
        )
        self._life = Life(parts, settings)
        self._door = Door(
            engine,
            state,
            self._life,
            policy,
            refusals,
            settings,
            self._own_log,
            lambda: node.given_bus is not None,
        )
        self._calls, self._delivery = calls, delivery
        self._callbacks, self._hooks, self._tasks = callbacks, hooks, tasks
        self._site, self._admission, self._node = site, admission, node
        self._authenticate = authenticate
        self._observe_needs = ObserveNeeds(
            engine=engine,
            calls=calls,
            counting=Counting(engine, callbacks, delivery, self._life, node),
            stores=delivery.store_latencies,
            add_route=lambda path, fn: self.route(path)(fn),
            accompany=self._life.companions.append,
            wrap_callbacks=callbacks.wrap,
            watch_upgrades=policy.watch_upgrades,
            report=report,
        )
        self._api_needs = ApiNeeds(
            engine=engine,
            client_of=engine.get_client_by_id,
            count_clients=self.get_connected_clients,
            node=node,
            has_acks=lambda: delivery.acks is not None,
            send_with_ack=partial(delivery.send_with_ack, to_client=False),
            draining=lambda: state.draining,
            check_route=self._check_route,
            add_route=site.routes.add,
        )
        join(engine, requests, admission, callbacks, delivery)
        self.set_config(config if config is not None else self._config)

    def _console_needs(self) -> ConsoleNeeds:
        from wsc_fast.console.needs import Needs

        observed = self._observed()
        return Needs(
            hub=self,
            node=self._node,
            watch_loop=observed.watch_loop,
            read=observed.read,
            count_pending=self._delivery.count_pending,
            count_stored=self._delivery.count_stored,
            # A bound method is a new object each time it is looked up, and equal to the others.
            authenticates=lambda fn: fn == self._authenticate,
            count_rejected=self._engine.count_rejected,
            draining=lambda: self._parts.state.draining,
            check_route=self._check_route,
            add_route=self._site.routes.add,
            accompany=self._life.companions.append,
            running=lambda: self.loop is not None,
        )

    def __repr__(self) -> str:
        state = "stopped" if self.loop is None or self.loop.is_closed() else "running"
        return f"<Hub {state}, {self.get_connected_clients()} clients>"

    def __dir__(self) -> list[str]:
        """The public names, for completion."""
        return [name for name in super().__dir__() if not name.startswith("_")]

    # --- configuration ---

    @property
    def config(self) -> HubConfig:
        """The settings that hold now; `set_config` changes them."""
        return self._config

    def set_config(self, config: HubConfig) -> None:
        """Sets the configuration: all of it before the start, what can change after it.

        Args:
            config: the new settings.

        Raises:
            ConfigError: a setting differs that a running hub cannot change.

        Thread-safety: any thread. Source: go-wsc `SetConfig`.
        """
        self._calls.run(partial(self._set_config, config))

    def _set_config(self, config: HubConfig) -> None:
        if not isinstance(config, HubConfig):
            raise ConfigError(f"config must be a HubConfig, not {type(config).__name__}")
        self._life.forget_closed_loop()
        if self.loop is not None:
            self._check_change(config)
        else:
            self._engine.configure(config)
            self._site.set_extensions(config)
        self._config = config
        if self.loop is None:
            self._node.configured()
        if self._runner is not None:
            self._runner.allow_files()
            self._parts.files.look()
        self._engine.configure_live(config)
        self._site.set_trusted(config)
        self._admission.set_limits(config)

    def _check_change(self, config: HubConfig) -> None:
        """Raises ConfigError for what a running hub cannot change."""
        for name, kind in kinds_of(HubConfig).items():
            old, new = getattr(self.config, name), getattr(config, name)
            if old != new and not kind.live:
                raise ConfigError(
                    f"HubConfig.{name} cannot change while the hub runs: {old!r} to {new!r}"
                )
        if self._life.check_settings is not None:
            self._life.check_settings(config)

    # --- life ---

    @property
    def port(self) -> int:
        """The port listened on, the same at each address.

        Raises:
            HubStateError: the hub does not listen.
        """
        return self._parts.listener.port

    async def start(
        self,
        host: Host = "127.0.0.1",
        port: int = 8080,
        *,
        path: str = "/ws",
        ssl: SSLContext | None = None,
        sock: Given = None,
        certfile: str | None = None,
        keyfile: str | None = None,
        reuse_port: bool = False,
        transport: TransportName = "hub",
    ) -> None:
        """Starts serving on the running loop; returns once the address is listened on.

        Args:
            host: an address or a name, a list of them, or None or "" for all interfaces. A host
                that is written as an address has to be one of this machine; of the addresses that a
                name stands for, one has to be. "::" takes IPv4 as well, if the list has no IPv4
                address.
            port: 0 chooses one that is free at each address, see `port`.
            path: of the WebSocket endpoint, exact.
            ssl: serve wss:// with this context.
            sock: an already bound TCP socket, or a list of these, instead of host and port, such
                as one that systemd handed over (`inherited_socket`).
            certfile, keyfile: PEM files, instead of `ssl`, for TLS 1.2 and newer; see
                `reload_certificate`.
            reuse_port: let other processes listen on the same port (SO_REUSEPORT).
            transport: "hub": on Linux the engine accepts, reads and writes itself, over TLS too;
                elsewhere the loop does. "loop": the loop does in any case. "picows":
                likewise, and picows makes each connection once its upgrade is accepted, so that
                `client.conn` is picows' own transport from the start. All settings hold with each;
                what "picows" costs stands in the README.

        Raises:
            ListenError: the address is in use, not ours, or not permitted.
            HubStateError: the hub runs already.
            ValidationError: a Unix socket, a path or a transport that cannot be served, or both
                kinds of TLS.
            ConfigError: the certificate cannot be loaded.
            OfflineStoreError: the offline store does not open.

        Thread-safety: the thread of the running loop, which the hub then belongs to.
        """
        self._life.check_not_running()
        self._site.check_endpoint(path)
        given = check_listen_arguments(host, port, sock, ssl)
        if transport not in ("hub", "loop", "picows"):
            raise ValidationError(f"transport must be 'hub', 'loop' or 'picows', not {transport!r}")
        ssl = self._parts.listener.choose_tls(ssl, certfile, keyfile)
        by_picows = picows.make_connection if transport == "picows" else None
        self._parts.requests.make_connection = by_picows
        self._parts.listener.by_loop = transport != "hub"
        await self._life.start(host, port, path=path, given=given, ssl=ssl, reuse_port=reuse_port)

    async def attach(self, *, tls: bool = False) -> None:
        """Has the hub run on the running loop, on which another server listens.

        For a picows server of one's own, whose listener factory calls `handle_websocket`: clients
        of that server are then the hub's, its heartbeat runs, and its offline store is open. Until
        `stop`, which closes the clients and leaves the server to its owner.

        Args:
            tls: whether that server speaks TLS. Then the origin of a page of its own is https.

        Raises:
            HubStateError: the hub runs already.
            HubStoppedError: it was stopped while its offline store opened.
            ConfigError: a setting cannot hold on a server that is not the hub's; its text says why.
            OfflineStoreError: the offline store does not open.

        Thread-safety: the thread of the running loop, which the hub then belongs to.
        Source: go-wsc `go hub.Run()` beside `HandleWebSocket`.
        """
        await self._door.attach(picows.SERVER, picows.check_attachable, tls)

    def uvicorn(self, path: str = "/ws") -> Any:
        """Gives uvicorn a WebSocket endpoint that is the hub's, beside an application of its own.

        Use as `uvicorn.run(app, ws=hub.uvicorn(path="/ws"))`. With reload or workers, uvicorn
        imports the application in each process: write `ws = hub.uvicorn(path="/ws")` in the module
        `app`, and `uvicorn app:app --ws app:ws`. HTTP and all other WebSocket paths stay the
        application's. The hub starts with that server, and stops with it.

        Args:
            path: of the WebSocket endpoint, exact.

        Returns:
            what `uvicorn.run` and `uvicorn.Config` take as `ws`.

        Raises:
            ValidationError: the path cannot be served, or is a route's.
            ImportError: uvicorn is not there (the extra `uvicorn` has it).

        Thread-safety: any thread.
        """
        from wsc_fast.adapters.uvicorn import Endpoint

        self._site.check_endpoint(path)
        return Endpoint(self._door, path)

    def aiohttp(self, app: Any, path: str = "/ws", *, tls: bool = False) -> None:
        """Gives an aiohttp application a WebSocket endpoint that is the hub's.

        All other paths stay the application's. The hub starts with the application, and stops with
        it. To be called before the application runs.

        Args:
            app: an `aiohttp.web.Application`.
            path: of the WebSocket endpoint, as for `app.router.add_get`.
            tls: whether the application's server speaks TLS.

        Raises:
            ValidationError: the path cannot be served, or is a route's.

        Thread-safety: any thread.
        """
        from wsc_fast.adapters.aiohttp import Endpoint

        self._site.check_endpoint(path)
        Endpoint(self._door, app, path, tls)

    def asgi_routes(self, app: Any = None) -> Any:
        """Serves the hub's routes on the port of an ASGI application: `route`, API and metrics.

        Use as `app.add_middleware(hub.asgi_routes)` with FastAPI or Starlette, as
        `app.mount("/api", hub.asgi_routes())`, or as `application = hub.asgi_routes(application)`
        with any other. A route has the path that it was given, also where it is mounted. The hub
        runs on the loop of the application, as with `uvicorn`; its WebSocket is not served so.

        Args:
            app: the application that gets all other requests; None: they are answered with 404.

        Returns:
            an ASGI application.

        Thread-safety: any thread.
        """
        from wsc_fast.adapters.asgi import AsgiRoutes

        self._door.serves_routes = True
        return AsgiRoutes(self._door, app)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Says how a hub is served beside an ASGI application, since it is none itself.

        Raises:
            HubStateError: always.
        """
        raise HubStateError(
            "a hub is no ASGI application, and cannot be mounted in one. Write "
            'uvicorn.run(app, ws=hub.uvicorn(path="/ws")), or uvicorn app:app --ws app:ws where '
            'the module app has ws = hub.uvicorn(path="/ws")'
        )

    def reload_certificate(self) -> None:
        """Loads `certfile` and `keyfile` again, for connections from now on; the others stay.

        `run` does so at SIGHUP.

        Raises:
            HubStateError: the hub was not started with `certfile`.
            ConfigError: the files cannot be loaded; the certificate in use stays.

        Thread-safety: any thread.
        """
        self._parts.listener.reload_certificate()

    def run(
        self,
        host: Host = "127.0.0.1",
        port: int = 8080,
        *,
        path: str = "/ws",
        ssl: SSLContext | None = None,
        sock: Given = None,
        certfile: str | None = None,
        keyfile: str | None = None,
        reuse_port: bool = False,
        transport: TransportName = "hub",
    ) -> None:
        """Serves until SIGINT or SIGTERM, on uvloop; blocks.

        The arguments are those of `start`. The first signal drains (`HubConfig.drain_period`) and
        stops gracefully, a second one stops at once; one that comes before the hub serves ends the
        start. SIGHUP loads the certificate again, where there is a certfile.

        Until it returns, the handlers of these signals are the hub's, which call those that the
        application had set before; SIGPIPE is ignored; the soft limit of open files is what
        `max_connections` needs (children inherit it); and the garbage collector passes over the
        objects that were there before. Then all of it is as it was before. glibc keeps up to
        16 MiB of freed memory from then on.

        Where the application has configured no logging, the log goes to standard error meanwhile;
        see HubConfig.log_format and log_level.

        Raises:
            SystemExit: the address cannot be listened on, or the bus cannot be used; its text says
                why in one line. Or a signal handler of the application has raised it.
            HubStateError: a loop runs in this thread already; there it is `await hub.start(...)`.

        Thread-safety: signals are handled only when called in the main thread.
        Source: go-wsc `go hub.Run()` with `http.ListenAndServe`.
        """
        runner = Runner(
            Served(
                start=self.start,
                stop=self.stop,
                stopped=self._life.stopped,
                drain=self._drain_before_stop,
                abort=self._life.abort_all,
                reload_certificate=self.reload_certificate,
                open_files=self._open_files,
                own_log=self._own_log,
            )
        )
        before = self._runner, self._life.give_signals_back
        self._runner, self._life.give_signals_back = runner, runner.give_signals_back
        try:
            runner.run(
                host,
                port,
                path=path,
                ssl=ssl,
                sock=sock,
                certfile=certfile,
                keyfile=keyfile,
                reuse_port=reuse_port,
                transport=transport,
            )
        finally:
            # The hub may be in another `run` already, which this one has found out.
            self._runner, self._life.give_signals_back = before

    async def _drain_before_stop(self) -> None:
        if self.config.drain_period:
            await self.drain(self.config.drain_period)
        else:
            await self._life.leave_port()

    def _open_files(self) -> int:
        return self.config.max_connections + self.config.max_handshakes + _OTHER_FILES

    def _own_log(self) -> OwnLog:
        return OwnLog(json=self.config.log_format == "json", level=self.config.log_level)

    async def __aenter__(self) -> Self:
        """Starts the hub with the default arguments, unless it runs already."""
        self._life.forget_closed_loop()
        if self.loop is None:
            await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()


def door_of(hub: Hub) -> Door:
    """The interface through which another server hands over its connections (for adapters/)."""
    return hub._door
