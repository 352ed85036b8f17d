// Sends a text to a user from Node, on whichever hubs he is, with the script of the package:
//
//     node notify.mjs ann 'your parcel is here' PATH-OF-users.lua
//
// It prints on how many hubs he was. BUS is the URL of the bus. docs/redis-bus.md explains the
// arguments of the script.
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import Redis from "ioredis";

const [user, text, path] = process.argv.slice(2);
const redis = new Redis(process.env.BUS ?? "redis://127.0.0.1:6379/0");
// ioredis calls the script by EVALSHA, and loads it where the server does not know it.
redis.defineCommand("users", { numberOfKeys: 0, lua: readFileSync(path, "utf8") });

const message = {
  id: randomUUID(), type: "text", to: user, content: text, create_at: new Date().toISOString(),
};
const word = JSON.stringify(["message", user, 2, message]);
const [hubs] = await redis.users("tell", "wsc:", "", user, word);
console.log(hubs);
redis.disconnect();
