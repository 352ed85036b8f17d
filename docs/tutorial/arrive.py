"""Part 5: letters to users, which wait for those who are away; a crash loses none."""

from typing import Any

from browser import hub

from wsc_fast import (
    ACKConfig,
    ACKMessage,
    Client,
    Hub,
    OfflineStore,
    RequestError,
    SQLiteOfflineStore,
)


def deliver_letters(hub: Hub, store: OfflineStore | None = None) -> None:
    """Lets clients send letters.

    Args:
        hub: the hub, before its start.
        store: where letters wait; None leaves it to the bus of the hub.
    """
    hub.enable_ack(ACKConfig(enable_offline_messages=True), store=store)

    @hub.on_request
    async def letter(client: Client, data: Any) -> str:
        """{"to": "bob", "text": "hello"}."""
        match data:
            case {"to": str(user), "text": str(text)}:
                message = ACKMessage(content=text[:1_000], from_=client.user_id)
                pending = hub.send_ack_message_to_user(user, message)
                await pending.accepted()  # from here on no crash can lose it
                return f"{user} will have it"
        raise RequestError("not-understood", 'send {"to": USER, "text": TEXT}')


if __name__ == "__main__":
    deliver_letters(hub, SQLiteOfflineStore("letters.db"))
    hub.run(port=8080)
