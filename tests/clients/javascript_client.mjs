// Clients of clients/javascript for javascript.py: commands come as JSON lines, events go out as such.
// Arguments: the module to import, and from where to require `ws` ("" for node's WebSocket).

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [module, from] = process.argv.slice(2);
const { connect } = await import(module);
const platform = from ? { WebSocket: createRequire(from)("ws").WebSocket } : {};

const EVENTS = ["state", "joined", "recovered", "first", "gap", "bus"];
const stored = new Map();
const storage = { getItem: (key) => stored.get(key) ?? null, setItem: (key, value) => stored.set(key, value) };
let client;
let tokens = [];

function tell(...event) {
  process.stdout.write(JSON.stringify(event) + "\n");
}

function shown(data) {
  return data instanceof Uint8Array ? { bytes: Buffer.from(data).toString("base64") } : data;
}

function note(name, promise) {
  promise.then(
    (value) => tell("resolved", name, shown(value) ?? null),
    (error) => tell("rejected", name, error.code ?? String(error)),
  );
}

const commands = {
  connect(url, options, ...given) {
    tokens = given;
    client = connect(url, {
      ...options,
      ...platform,
      ...(options.storage && { storage }),
      ...(given.length && {
        getToken: async () => {
          tell("token", tokens[0]);
          return tokens.length > 1 ? tokens.shift() : tokens[0];
        },
      }),
      load: (room, why) => tell("load", room, why),
    });
    for (const name of EVENTS) client.on(name, (event) => tell(name, event));
    client.on("refused", ({ room, error }) => tell("refused", room, error.code));
    client.on("message", ({ data, room = null, hub }) => tell("message", shown(data), room, hub));
    client.on("error", (error) => tell("error", String(error)));
  },
  send: (name, data) => note(name, client.send(data)),
  bytes: (name, data) => note(name, client.send(Buffer.from(data, "base64"))),
  request: (name, data, options) => note(name, client.request(data, options)),
  room: (name, options) => void client.room(name, options),
  leave: (name) => client.room(name, { join: false }).leave(),
  close: () => client.close(),
};

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const [command, ...values] = JSON.parse(line);
    commands[command](...values);
  })
  .on("close", () => process.exit(0));
