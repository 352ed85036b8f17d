// Socket.IO with one of its two adapters for Redis, as their documentation has them.
//
//     node socketio_node.mjs PORT REDIS_PORT adapter|streams
//
// It takes the commands of _commands.py.
//
// `emit` has no answer. Where a command to Redis fails, the adapter leaves a rejection that nobody
// handles, which ends a process of Node. The handler here keeps the process.
import { createInterface } from "node:readline";
import { createAdapter } from "@socket.io/redis-adapter";
import { createAdapter as createStreamsAdapter } from "@socket.io/redis-streams-adapter";
import { createClient } from "redis";
import { Server } from "socket.io";

process.on("unhandledRejection", () => {});
const [port, redisPort, kind] = process.argv.slice(2);
const options = { transports: ["websocket"], pingInterval: 300_000 };
const client = createClient({ url: `redis://127.0.0.1:${redisPort}` });
client.on("error", () => {});
await client.connect();
if (kind === "streams") {
  options.adapter = createStreamsAdapter(client);
  options.connectionStateRecovery = {};
} else {
  const subscriber = client.duplicate();
  subscriber.on("error", () => {});
  await subscriber.connect();
  options.adapter = createAdapter(client, subscriber);
}
const io = new Server(options);
io.on("connection", (socket) => socket.join("room"));
io.listen(Number(port));

const text = (number) => String(number).padStart(8, "0").padEnd(128, "x");
const refused = [];
createInterface({ input: process.stdin }).on("line", (line) => {
  const [name, count, first] = line.split(" ");
  if (name === "report") {
    console.log(JSON.stringify(refused));
    return;
  }
  for (let number = Number(first); number < Number(first) + Number(count); number++) {
    try {
      io.to("room").emit("m", text(number));
    } catch {
      refused.push(number);
    }
  }
  console.log("emitted");
}).on("close", () => process.exit(0));
console.log("ready");
