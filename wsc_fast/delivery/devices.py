"""ACKConfig(per="device"): each known device of a user has a mailbox of its own.

A message to a user is one delivery for each of the user's devices, connected or not, and each is
acknowledged, sent again, stored and dropped by itself. The PendingACK that the caller has stands
for all of them: the first acknowledgement confirms it, and where none comes it ends with the last.

The offline store keeps the devices of a user, in a mailbox of its own: an entry for each
device, so that the store's bounds in number and age are those of the devices. A device that has
been forgotten is a new one when it comes back. Messages that were stored while no device of their
user was known go to the first one.

Keys of mailboxes: of the devices of a user, of one device, and the user id itself for clients
without a device id and for users without devices. No id holds the character between the parts.
"""

from __future__ import annotations

import asyncio
import json
import weakref
from functools import partial
from typing import TYPE_CHECKING

from wsc_fast._core import clock
from wsc_fast._core.clients import check_id
from wsc_fast._core.pending import AckTable, PendingACK
from wsc_fast.delivery.parked import Parked
from wsc_fast.delivery.store_access import PAGE, StoreAccess, store_error
from wsc_fast.errors import AckError, PendingFullError, WSCError
from wsc_fast.messages import ACKMessage, AckStatus
from wsc_fast.stores.base import StoredMessage
from wsc_fast.turns import in_turns

if TYPE_CHECKING:
    from wsc_fast._core.connection import Client
    from wsc_fast.config import ACKConfig
    from wsc_fast.delivery.needs import Needs

_BETWEEN = "\x1f"
# The part of `offline_max_age` after which a device that connects is noted anew.
REFRESH = 0.1
# Messages that are sent to the devices of a user in one turn of the loop.
AT_ONCE = 20


def key_of_device(user_id: str, device_id: str | None) -> str:
    """The mailbox of a device; of a client without a device id that of its user."""
    return user_id if device_id is None else f"{user_id}{_BETWEEN}{device_id}"


def key_of_devices(user_id: str) -> str:
    """The mailbox in which the devices of a user are noted."""
    return f"{_BETWEEN}{user_id}"


def user_of_key(key: str) -> str:
    """The user of a mailbox, of whichever kind."""
    user_id, _, rest = key.partition(_BETWEEN)
    return user_id or rest


def is_of_devices(key: str) -> bool:
    """Whether a key is that of a mailbox in which devices are noted."""
    return key.startswith(_BETWEEN)


class Group:
    """The deliveries of one message to the devices of a user.

    The caller's PendingACK holds them, and they hold this; so a caller that lets go of it frees it.
    """

    __slots__ = ("_parent", "confirmed", "waiting")

    def __init__(self, parent: PendingACK) -> None:
        self._parent = weakref.ref(parent)
        self.waiting: int = 0
        self.confirmed: bool = False

    @property
    def parent(self) -> PendingACK | None:
        """The caller's; None if nobody holds it, or it has come to its end."""
        parent = self._parent()
        return None if parent is None or parent.done() else parent


class Devices:
    """The devices of the users of one hub.

    Args:
        needs: of the hub.
        table: of what is pending.
        config: ACKConfig.
        parked: the messages of users who are away.
        access: the offline store, in which the devices are noted.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self, needs: Needs, table: AckTable, config: ACKConfig, parked: Parked, access: StoreAccess
    ) -> None:
        self._needs = needs
        self._table = table
        self._config = config
        self._parked = parked
        self._access = access
        # Of users who are connected: their devices; None where these are not known yet.
        self._known: dict[str, dict[str, None] | None] = {}
        # Messages that wait for that, in the order of sending.
        self._waiting: dict[str, list[tuple[PendingACK, ACKMessage]]] = {}
        self._waiting_count = self._waiting_bytes = 0
        # Users whose devices have changed since they were read.
        self._stale: set[str] = set()
        self._loading: dict[str, asyncio.Task[Exception | None]] = {}
        # The PendingACKs that callers hold, so that the same message again is found.
        self._parents = Parked()

    def clear(self) -> None:
        """Forgets everything; what waits is told by `Acks.stop`."""
        for task in self._loading.values():
            task.cancel()
        self._loading.clear()
        self._known.clear()
        self._waiting.clear()
        self._waiting_count = self._waiting_bytes = 0
        self._stale.clear()
        self._parents.clear()

    # --- sending ---

    def send(self, user_id: str, message: ACKMessage) -> PendingACK:
        """Sends a message to all devices of a user, once these are known."""
        check_id("user", user_id)
        data = self._table.encoded(user_id, message)
        parent = self._parents.get(user_id, message.id)
        if parent is not None and not parent.done():
            self._table.check_same(parent, data)
            return parent
        parent = self._table.unlisted(user_id, user_id, message, data)
        self._parents.add(parent)
        devices = self._known.get(user_id)
        if devices is not None and user_id not in self._waiting:
            self._fan_out(parent, message, devices, raising=True)
            return parent
        config = self._config
        if (
            self._waiting_count >= config.max_pending
            or self._waiting_bytes >= config.max_pending_bytes
        ):
            raise PendingFullError(
                f"{self._waiting_count} messages of {self._waiting_bytes} bytes wait for the "
                "offline store to tell the devices of their users (ACKConfig.max_pending, "
                "max_pending_bytes)"
            )
        self._waiting.setdefault(user_id, []).append((parent, message))
        self._waiting_count += 1
        self._waiting_bytes += len(data)
        self._load(user_id)
        return parent

    def _fan_out(
        self,
        parent: PendingACK,
        message: ACKMessage,
        devices: dict[str, None],
        *,
        raising: bool,
    ) -> None:
        """One delivery for each device, and one for clients without a device id."""
        table, user_id = self._table, parent.user_id
        keys = [key_of_device(user_id, device_id) for device_id in devices]
        if not keys or table.has_clients(user_id, user_id):
            keys.append(user_id)
        group = Group(parent)
        children: list[PendingACK] = []
        trouble: Exception | None = None
        for key in keys:
            try:
                child = table.send_to_mailbox(key, user_id, None, message, parent._data)
            except WSCError as error:
                trouble = error
                continue
            child._group = group
            children.append(child)
        if trouble is not None and not children:
            if raising:
                self._parents.pop(user_id, parent.id)
                raise trouble
            table.give_up(parent, trouble)
            return
        group.waiting = len(children)
        parent._children = children
        if all(child.status is AckStatus.STORED for child in children):
            parent.status = AckStatus.STORED

    def ended(self, child: PendingACK) -> None:
        """A delivery to one device has come to its end."""
        group: Group = child._group
        group.waiting -= 1
        if child.status is AckStatus.CONFIRMED:
            group.confirmed = True
        parent = group.parent
        if parent is not None and (group.confirmed or group.waiting == 0):
            self._table.settle(parent, child.status, child._error)

    def is_told(self, child: PendingACK) -> bool:
        """Whether the failure of a delivery is that of the message: no device has confirmed it."""
        group: Group = child._group
        return group.waiting == 0 and not group.confirmed

    def is_of_user(self, pending: PendingACK) -> bool:
        """Whether it is what a caller has, and not the delivery to one device."""
        return self._parents.get(pending.user_id, pending.id) is pending

    async def accepted(self, parent: PendingACK) -> None:
        """Returns once each device's delivery is stored or acknowledged."""
        while parent._children is None and not parent.done():
            loading = self._loading.get(parent.user_id)
            if loading is None:
                break
            await asyncio.wait([loading])
        if parent.done() or parent._children is None:
            await parent
            return
        ended: list[AckError] = []
        for child in list(parent._children):
            if parent.done():
                break
            try:
                await child.accepted()
            except AckError as error:
                ended.append(error)  # the others' deliveries go on
        if len(ended) == len(parent._children):
            raise ended[0]

    # --- which devices there are ---

    def joined(self, client: Client) -> None:
        """A client has connected."""
        user_id, device_id = client.user_id, client.device_id
        devices = self._known.setdefault(user_id, None)
        if devices is None:
            self._load(user_id)
        elif device_id is not None and device_id not in devices:
            # Messages go to it at once; it is noted meanwhile.
            devices[device_id] = None
            self.changed(user_id)

    def left(self, client: Client) -> None:
        """A client has gone."""
        if not self._table.is_here(client.user_id):
            self._known.pop(client.user_id, None)

    def changed(self, user_id: str) -> None:
        """The devices of a user are not those that were read."""
        if user_id in self._known:
            self._stale.add(user_id)
            self._load(user_id)

    def forgotten(self, user_id: str, device_id: str) -> None:
        """The store has let go of a device, for their number or its age."""
        devices = self._known.get(user_id)
        if devices is not None and device_id in devices:
            del devices[device_id]
            if device_id in self._connected(user_id):
                self.changed(user_id)

    async def known(self, user_id: str) -> None:
        """Returns once the devices of a user are known, and those that are connected are noted.

        Raises:
            OfflineStoreError: the store cannot be asked.
        """
        loading = self._loading.get(user_id)
        if loading is None and self._known.get(user_id) is None:
            loading = self._load(user_id)
        if loading is not None:
            await asyncio.wait([loading])
            error = None if loading.cancelled() else loading.result()
            if error is not None:
                raise error

    def _connected(self, user_id: str) -> list[str]:
        clients = self._needs.engine.get_clients_by_user(user_id)
        return [client.device_id for client in clients if client.device_id is not None]

    def _load(self, user_id: str) -> asyncio.Task[Exception | None]:
        task = self._loading.get(user_id)
        if task is None:
            loop = self._table.loop
            assert loop is not None
            task = loop.create_task(self._read(user_id))
            self._loading[user_id] = task
            task.add_done_callback(partial(self._loaded, user_id))
        return task

    def _loaded(self, user_id: str, task: asyncio.Task[Exception | None]) -> None:
        if self._loading.get(user_id) is task:
            del self._loading[user_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._needs.report(error)

    async def _read(self, user_id: str) -> Exception | None:
        """Learns the devices of a user, and sends what has waited for that."""
        while True:
            self._stale.discard(user_id)
            error = await self._read_once(user_id)
            if error is not None or user_id not in self._known:
                return error
            devices = self._known[user_id]
            if (
                devices is not None
                and user_id not in self._stale
                and devices.keys() >= set(self._connected(user_id))
            ):
                return None

    async def _read_once(self, user_id: str) -> Exception | None:
        devices: dict[str, None] = {}
        error: Exception | None = None
        try:
            devices = await self._access.ask(self._learn(user_id))
        except Exception as failure:
            error = store_error(failure)
            devices = dict.fromkeys(self._connected(user_id))
        if user_id in self._known:
            self._known[user_id] = devices if error is None else None
        # Messages that are sent meanwhile wait behind it.
        while waiting := self._waiting.get(user_id):
            some = waiting[:AT_ONCE]
            del waiting[:AT_ONCE]
            self._waiting_count -= len(some)
            self._waiting_bytes -= sum(len(parent._data) for parent, _ in some)
            for parent, message in some:
                if error is not None and not devices:
                    self._table.give_up(parent, error)
                else:
                    self._fan_out(parent, message, devices, raising=False)
            if waiting:
                await asyncio.sleep(0)
        self._waiting.pop(user_id, None)
        return error

    async def _learn(self, user_id: str) -> dict[str, None]:
        await self._access.opened()
        store, key = self._access.store, key_of_devices(user_id)
        most = self._config.max_devices
        timed = self._access.timed
        noted = {each.id: each for each in await timed("read", store.read(key, limit=most))}
        while new := [each for each in self._connected(user_id) if self._is_stale(noted.get(each))]:
            for device_id in new:
                if not noted:
                    await self._hand_over(user_id, key_of_device(user_id, device_id))
                data = json.dumps({"device": device_id}).encode()
                await timed("delete", store.delete(key, [device_id]))
                noting = store.append(key, device_id, data, limit=most, drop_oldest=True)
                gone = await timed("append", noting)
                for forgotten in gone:
                    noted.pop(forgotten.id, None)
                noted[device_id] = StoredMessage(0, device_id, data, clock.time())
        return dict.fromkeys(noted)

    def _is_stale(self, noted: StoredMessage | None) -> bool:
        """Whether a device is to be noted, so that its age begins again."""
        age = self._config.offline_max_age * REFRESH
        return noted is None or clock.time() - noted.stored_at > age

    async def _hand_over(self, user_id: str, key: str) -> None:
        """Messages that were stored while no device was known go to the first one."""
        store = self._access.store
        after = 0
        while page := await store.read(user_id, after=after, limit=PAGE):
            for stored in page:
                after = stored.position
                await store.append(
                    key, stored.id, stored.data, limit=self._config.offline_limit, drop_oldest=True
                )
                pending = self._parked.pop(user_id, stored.id)
                if pending is not None:
                    pending._mailbox = key
                    self._parked.add(pending)
            await store.delete(user_id, [stored.id for stored in page])

    async def finish(self, deadline: float) -> None:
        """The hub stops: what waits for the devices of its user is sent, and so stored."""
        loop = asyncio.get_running_loop()
        while self._loading and (left := deadline - loop.time()) > 0:
            await asyncio.wait(set(self._loading.values()), timeout=left)

    async def end(self, error: Exception) -> None:
        """The hub stops: what is not ended by its deliveries ends here."""

        def give_up(parent: PendingACK) -> None:
            if not parent.done():
                self._table.give_up(parent, error)

        await in_turns(self._parents, give_up, AT_ONCE)
