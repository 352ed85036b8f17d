/** The hooks, in a page of happy-dom and over a real connection. */

import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import { Window } from "happy-dom";
import { act, createElement, StrictMode, type ReactElement } from "react";
import type { Root } from "react-dom/client";
import { WebSocket, WebSocketServer } from "ws";
import type { SocketClass } from "../src/index.js";
import { useHub, usePresence, useRoom } from "../src/react.js";

/** A server that answers joins, and notes what clients send. */
class Hub {
  server = new WebSocketServer({ port: 0, handleProtocols: () => "wsc.1" });
  heard: unknown[] = [];

  constructor() {
    this.server.on("connection", (socket) =>
      socket.on("message", (data) => {
        const [head, text] = String(data).split("\n");
        const message = JSON.parse(text || head || "") as { type?: string; id?: string; room?: string };
        this.heard.push(message.type ? `${message.type} ${message.room}` : "hello");
        const error = message.room === "staff" ? { error: { code: "forbidden", message: "no" } } : {};
        if (message.id) socket.send("\n" + JSON.stringify({ type: "answer", id: message.id, ...error }));
      }),
    );
  }

  get url(): string {
    return `ws://127.0.0.1:${(this.server.address() as { port: number }).port}/`;
  }

  say(text: string): void {
    for (const socket of this.server.clients) socket.send(text);
  }
}

const options = { WebSocket: WebSocket as unknown as SocketClass };
let hub: Hub;
let createRoot: (element: never) => Root;
let page: Window;

before(async () => {
  page = new Window();
  Object.assign(globalThis, {
    window: page,
    document: page.document,
    IS_REACT_ACT_ENVIRONMENT: true,
  });
  if (!("navigator" in globalThis)) Object.assign(globalThis, { navigator: page.navigator });
  ({ createRoot } = await import("react-dom/client"));
  hub = new Hub();
});

after(async () => {
  hub.server.close();
  for (const socket of hub.server.clients) socket.terminate();
  await page.happyDOM.close();
});

async function until(holds: () => boolean, what: string): Promise<void> {
  for (let tries = 0; tries < 500 && !holds(); tries++) {
    await act(() => new Promise((resolve) => setTimeout(resolve, 5)));
  }
  assert.ok(holds(), `never happened: ${what}`);
}

async function shown(element: ReactElement): Promise<{ text: () => string; root: Root }> {
  const place = page.document.createElement("div");
  const root = createRoot(place as never);
  await act(async () => root.render(element));
  return { text: () => place.textContent, root };
}

function Chat({ room }: { room: string }): string {
  const { client, state } = useHub(hub.url, options);
  const loads: string[] = [];
  const { messages, joined, refused } = useRoom<string>(client, room, {
    keep: 2,
    onLoad: (name, why) => loads.push(`${name} ${why}`),
  });
  const users = usePresence(client, room);
  const texts = messages.map(({ data }) => data).join(",");
  return `${state} ${joined ? "in" : "out"} ${refused?.code ?? ""} [${texts}] {${users.join(",")}}`;
}

test("a component shows the state, the room and who is there, and ends with its client", async () => {
  const { text, root } = await shown(createElement(Chat, { room: "chat" }));
  await until(() => text() === "open in  [] {}", "the component is in its room");
  for (const word of ["one", "two", "three"]) hub.say(`{"room":"chat","pos":"${word}"}\n${word}`);
  await until(() => text().includes("[two,three]"), "the newest messages are shown");
  hub.say('{"room":"other","pos":"1"}\nelsewhere');
  hub.say('\n{"type":"presence","room":"chat","users":["bob","ann"]}');
  await until(() => text().endsWith("{ann,bob}"), "all users are shown");
  hub.say('\n{"type":"presence","room":"chat","joined":["cid"],"left":["ann"]}');
  await until(() => text() === "open in  [two,three] {bob,cid}", "a change is shown");
  await act(async () => root.unmount());
  await until(() => hub.server.clients.size === 0, "the connection has ended");
});

test("another room is joined in place of the first, and a refusal is shown", async () => {
  hub.heard = [];
  const { text, root } = await shown(createElement(Chat, { room: "a" }));
  await until(() => text().startsWith("open in"), "the first room is joined");
  await act(async () => root.render(createElement(Chat, { room: "staff" })));
  await until(() => text().startsWith("open out forbidden"), "the second one is refused");
  await until(() => hub.heard.includes("leave a"), "the first one is left");
  assert.deepEqual(hub.heard, ["hello", "join a", "join staff", "leave a"]);
  await act(async () => root.unmount());
  await until(() => hub.server.clients.size === 0, "the connection has ended");
});

test("strict mode, which makes each component twice, joins and leaves nothing twice", async () => {
  hub.heard = [];
  const element = createElement(StrictMode, null, createElement(Chat, { room: "chat" }));
  const { text, root } = await shown(element);
  await until(() => text().startsWith("open in"), "the room is joined");
  assert.deepEqual(
    hub.heard.filter((word) => word !== "hello"),
    ["join chat"],
  );
  await act(async () => root.unmount());
  await until(() => hub.server.clients.size === 0, "the connection has ended");
});
