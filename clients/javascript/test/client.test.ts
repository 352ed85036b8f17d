/** What cases.json does not say: arguments, errors, and the standard classes of a page. */

import assert from "node:assert/strict";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import test from "node:test";
import { Client, SendError, type Options, type SocketClass } from "../src/index.js";
import { standardPlatform } from "../src/platform.js";

class Silent {
  static last: Silent;
  binaryType = "";
  bufferedAmount = 0;
  readyState = 1;
  onopen: (() => void) | null = null;
  onmessage: ((event: { data: string }) => void) | null = null;
  onclose: ((event: { code: number }) => void) | null = null;
  onerror: (() => void) | null = null;
  sent: string[] = [];

  constructor(readonly url: string) {
    Silent.last = this;
  }

  send(data: string): void {
    this.sent.push(data);
  }

  close(): void {}
}

const options: Options = { WebSocket: Silent as unknown as SocketClass, recover: false };

test("a url that is none is refused, and http is taken for ws", () => {
  assert.throws(() => new Client("no url", options), TypeError);
  const client = new Client("https://app.example/ws", options);
  client.connect();
  assert.equal(Silent.last.url, "wss://app.example/ws");
  client.close();
});

test("without a WebSocket the error says what to give", () => {
  const own = globalThis.WebSocket;
  Reflect.deleteProperty(globalThis, "WebSocket");
  try {
    assert.throws(() => new Client("ws://hub.test/"), /options\.WebSocket/);
  } finally {
    if (own) globalThis.WebSocket = own;
  }
});

test("what is no JSON is not sent", async () => {
  const client = new Client("ws://hub.test/", options);
  await assert.rejects(client.send(undefined), TypeError);
  const circle: { self?: object } = {};
  circle.self = circle;
  await assert.rejects(client.send(circle), TypeError);
});

test("what the connection itself holds back counts for the queue", async () => {
  const client = new Client("ws://hub.test/", { ...options, queueBytes: 100 });
  client.connect();
  Silent.last.onopen?.();
  await client.send("x".repeat(100));
  Silent.last.bufferedAmount = 100;
  await assert.rejects(client.send("x"), (error: SendError) => error.code === "queue-full");
  client.close();
});

test("a connection that is closing is given nothing, and the next one is", async () => {
  const client = new Client("ws://hub.test/", options);
  client.connect();
  Silent.last.onopen?.();
  Silent.last.readyState = 2;
  const sent = client.send("later");
  assert.deepEqual(Silent.last.sent, []);
  Silent.last.onclose?.({ code: 1012 });
  client.connect();
  Silent.last.onopen?.();
  await sent;
  assert.deepEqual(Silent.last.sent, ["later"]);
  client.close();
});

test("a message whose listener closes the client is not missing at the next connection", () => {
  const client = new Client("ws://hub.test/", { ...options, recover: true });
  const end = client.on("message", () => client.close());
  client.connect();
  Silent.last.onopen?.();
  Silent.last.onmessage?.({ data: '{"room":"r","pos":"1"}\nx' });
  end();
  client.connect();
  Silent.last.onopen?.();
  assert.deepEqual(JSON.parse(Silent.last.sent[0] as string), { hello: 1, pos: { r: "1" } });
  client.close();
});

test("a listener that has ended is not called, and one may end another", () => {
  const client = new Client<string>("ws://hub.test/", options);
  const heard: string[] = [];
  const end = client.on("message", () => {
    heard.push("first");
    end();
  });
  client.on("message", ({ data }) => heard.push(data));
  client.connect();
  Silent.last.onopen?.();
  for (const data of ["a", "b"]) Silent.last.onmessage?.({ data });
  assert.deepEqual(heard, ["first", "a", "b"]);
  client.close();
});

test("an error listener that throws ends nothing", (context) => {
  const shown = context.mock.method(console, "error", () => undefined);
  const client = new Client("ws://hub.test/", options);
  client.on("message", () => {
    throw new Error("first");
  });
  client.on("error", () => {
    throw new Error("second");
  });
  client.connect();
  Silent.last.onopen?.();
  Silent.last.onmessage?.({ data: "x" });
  assert.equal(client.state, "open");
  assert.deepEqual(
    shown.mock.calls.map(({ arguments: [error] }) => String(error)),
    ["Error: second"],
  );
  client.close();
});

test("a message of a room is an event of the room and of the client, a HubMessage too", () => {
  const client = new Client("ws://hub.test/", { ...options, recover: true });
  const heard: unknown[] = [];
  client.room("r").on("message", ({ data }) => heard.push(["room", data]));
  client.on("message", ({ data }) => heard.push(["client", data]));
  client.connect();
  Silent.last.onopen?.();
  Silent.last.onmessage?.({ data: '{"room":"r","pos":"1"}\n5' });
  assert.deepEqual(heard, [
    ["room", 5],
    ["client", 5],
  ]);
  client.close();
});

test("a hello has no more positions than its head line may hold", () => {
  const client = new Client("ws://hub.test/", { ...options, recover: true });
  client.connect();
  Silent.last.onopen?.();
  const rooms = Array.from({ length: 150 }, (_, number) => `${number}`.padEnd(200, "ä"));
  for (const room of rooms) {
    Silent.last.onmessage?.({ data: JSON.stringify({ room, pos: "p" }) + "\n" });
  }
  client.close();
  client.connect();
  Silent.last.onopen?.();
  const hello = Silent.last.sent[0] as string;
  assert.ok(Buffer.byteLength(hello) <= 16_000);
  const named = Object.keys((JSON.parse(hello) as { pos: object }).pos);
  assert.ok(named.length > 30);
  assert.deepEqual(named, rooms.slice(-named.length));
  client.close();
});

test("positions of rooms with names of numbers are in the order of their use", () => {
  const client = new Client("ws://hub.test/", { ...options, recover: true });
  client.connect();
  Silent.last.onopen?.();
  for (let number = 0; number < 120; number++) {
    Silent.last.onmessage?.({ data: `{"room":"${(number + 50) % 120}","pos":"p"}\n` });
  }
  client.close();
  client.connect();
  Silent.last.onopen?.();
  const { pos } = JSON.parse(Silent.last.sent[0] as string) as { pos: object };
  const newest = Array.from({ length: 100 }, (_, number) => `${(number + 70) % 120}`);
  assert.deepEqual(new Set(Object.keys(pos)), new Set(newest));
  client.close();
});

test("the page is watched while the client is not closed", (context) => {
  const target = new EventTarget();
  const page = Object.assign(new EventTarget(), { hidden: true });
  const before = [globalThis.addEventListener, globalThis.removeEventListener];
  Object.assign(globalThis, {
    addEventListener: target.addEventListener.bind(target),
    removeEventListener: target.removeEventListener.bind(target),
    document: page,
  });
  context.after(() => {
    Object.assign(globalThis, { addEventListener: before[0], removeEventListener: before[1] });
    Reflect.deleteProperty(globalThis, "document");
  });
  const heard: string[] = [];
  const platform = standardPlatform();
  const end = platform.watch(
    () => heard.push("back"),
    (kept) => heard.push(`away, ${kept}`),
    () => heard.push("again"),
  );
  const turn = (name: string, persisted: boolean): boolean =>
    target.dispatchEvent(Object.assign(new Event(name), { persisted }));
  assert.equal(platform.hidden(), true);
  target.dispatchEvent(new Event("online"));
  page.dispatchEvent(new Event("visibilitychange"));
  page.hidden = false;
  page.dispatchEvent(new Event("visibilitychange"));
  for (const persisted of [false, true]) {
    turn("pagehide", persisted);
    turn("pageshow", persisted);
  }
  end();
  turn("pagehide", true);
  turn("pageshow", true);
  target.dispatchEvent(new Event("online"));
  page.dispatchEvent(new Event("visibilitychange"));
  assert.deepEqual(heard, ["back", "back", "away, false", "away, true", "again"]);
});

test("a redirect of the status route is not followed (H4)", async () => {
  const asked: string[] = [];
  const server = createServer((request, response) => {
    asked.push(`${request.url} ${request.headers.authorization}`);
    response.writeHead(302, { Location: "/elsewhere" }).end();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const at = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  const client = new Client(`ws://${at}/ws`, {
    ...options,
    getToken: () => "secret",
    statusUrl: `http://${at}/status`,
    minDelay: 10,
  });
  let attempts = 0;
  await new Promise<void>((resolve) => {
    client.on("state", ({ state }) => {
      if (state !== "connecting") return;
      // The third attempt shows that the client has dealt with two answers.
      if (++attempts === 3) resolve();
      else setTimeout(() => Silent.last.onclose?.({ code: 1006 }));
    });
    client.connect();
  });
  client.close();
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
  assert.deepEqual(asked, ["/status Bearer secret", "/status Bearer secret"]);
});
