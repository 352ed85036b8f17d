"""The site of a hub, and its trust: endpoint, routes, hosts, proxies, extensions."""

from __future__ import annotations

from wsc_fast.addresses import Host, Network, parse_host, parse_network
from wsc_fast.config import HubConfig
from wsc_fast.errors import ValidationError
from wsc_fast.listen.arguments import check_path
from wsc_fast.upgrade.negotiation import Deflate
from wsc_fast.upgrade.routes import Routes


class Site:
    """The endpoint, the routes and the trust of one hub.

    Attributes:
        path: of the WebSocket endpoint; None where another server has chosen by the path.
        tls: the hub speaks TLS, or the server does whose connections it takes.
        trusted_proxies, allowed_hosts: HubConfig's.
        routes: what else it serves.
        deflate: what the hub wants of permessage-deflate; None where it is off.

    Thread-safety: the loop's thread, but for `routes`.
    """

    def __init__(self) -> None:
        self.path: str | None = None
        self.tls: bool = False
        self.trusted_proxies: tuple[Network, ...] = ()
        self.allowed_hosts: frozenset[Host | None] = frozenset()
        self.deflate: Deflate | None = None
        self.routes: Routes = Routes()

    def set_trusted(self, settings: HubConfig) -> None:
        """Takes the settings that a running hub takes."""
        networks = map(parse_network, settings.trusted_proxies)
        self.trusted_proxies = tuple(network for network in networks if network is not None)
        self.allowed_hosts = frozenset(map(parse_host, settings.allowed_hosts))

    def set_extensions(self, settings: HubConfig) -> None:
        """Takes the settings that hold from the start on."""
        self.deflate = (
            Deflate(
                settings.server_no_context_takeover,
                settings.client_no_context_takeover,
                settings.server_max_window_bits,
                settings.client_max_window_bits,
            )
            if settings.enable_compression
            else None
        )

    def check_endpoint(self, path: str) -> None:
        """Raises ValidationError for a path that cannot be the WebSocket endpoint."""
        check_path("path", path)
        if path in self.routes:
            raise ValidationError(f"the path {path!r} is served as a route already")

    def serve(self, path: str | None, tls: bool) -> None:
        """The hub starts: its endpoint is here from now on."""
        self.path = path
        self.tls = tls
