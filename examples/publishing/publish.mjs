// Publishes a text to a kept room from Node, with the script of the package:
//
//     node publish.mjs 'order:17' 'shipped' PATH-OF-publish.lua
//
// BUS is the URL of the bus. docs/redis-bus.md explains the arguments of the script.
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import Redis from "ioredis";

const [room, text, path] = process.argv.slice(2);
const redis = new Redis(process.env.BUS ?? "redis://127.0.0.1:6379/0");
redis.defineCommand("publishKept", { numberOfKeys: 2, lua: readFileSync(path, "utf8") });

const tag = randomBytes(6).toString("base64url");
const entry = `t 0 0 ${Buffer.byteLength(text)}\n${text}`;
const [position] = await redis.publishKept(
  `wsc:h:{${room}}`, `wsc:t:{${room}}`,
  `wsc:c:{${room}}`, "node", tag, 20, 3700000, 86400, 300, 8, "", "",
  `${tag} ${entry}`,
);
console.log(position);
redis.disconnect();
