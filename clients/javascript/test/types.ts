/** Uses of the types, right and wrong, which `tsc --strict` reads; nothing here runs. */

import { connect, type HubMessage, type Message } from "wsc-client";
import { useHub, useRoom } from "wsc-client/react";

type FromServer = { kind: "said"; text: string } | { kind: "left"; name: string };
type ToServer = { say: string } | { get: "price" };

const client = connect<FromServer, ToServer>("wss://app.example/ws", {
  getToken: async () => ({ token: "t", expires: 1 }),
  load: (room, why) => console.log(room.length, why === "first"),
});

client.on("message", ({ data, room, hub }) => {
  if (data.kind === "said") console.log(data.text, room?.length, hub);
  // @ts-expect-error: the union has no such kind
  if (data.kind === "other") return;
});
client.on("state", (event) => {
  if (event.state === "waiting") console.log(event.delay);
  // @ts-expect-error: only `open` has it
  console.log(event.again);
});
client.on("refused", ({ error }) => console.log(error.code));
// @ts-expect-error: no such event
client.on("opened", () => undefined);

void client.send({ say: "hi" }).then((nothing: void) => nothing);
void client.request<{ price: number }>({ get: "price" }).then(({ price }) => price.toFixed());
// @ts-expect-error: nothing that this application sends
void client.send({ shout: "hi" });
// @ts-expect-error: neither
void client.request({ get: "size" });

const room = client.room<{ kind: "said"; text: string }>("chat");
room.on("message", (message: Message<{ kind: "said"; text: string }>) => message.data.text);

const order: HubMessage<{ order: number }> = {
  id: "m1",
  type: "text",
  content: "",
  create_at: "2026-11-24T09:30:00Z",
  data: { order: 17 },
};
console.log(order.data?.order);

// @ts-expect-error: milliseconds are a number
connect("wss://app.example/ws", { minDelay: "1s" });
// @ts-expect-error: a storage has two methods
connect("wss://app.example/ws", { storage: {} });
connect("wss://app.example/ws", { storage: sessionStorage, WebSocket });

export function Component(): string {
  const hub = useHub<FromServer, ToServer>("/ws");
  const { messages } = useRoom<{ text: string }>(hub.client, "chat");
  return messages.map(({ data }) => data.text).join();
}
