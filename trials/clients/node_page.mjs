// A program for node that takes orders as tests/browsers/page.html does, as lines of JSON: it runs scripts
// and answers with what they return. Arguments: the package, and from where to require `ws` ("" for
// node's own WebSocket).

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [module, from] = process.argv.slice(2);
globalThis.wsc = await import(module);
globalThis.inNode = from ? { WebSocket: createRequire(from)("ws").WebSocket } : {};
const AsyncFunction = (async () => {}).constructor;

const answer = (number, outcome) =>
  process.stdout.write(JSON.stringify({ number, ...outcome }) + "\n");

createInterface({ input: process.stdin })
  .on("line", async (line) => {
    const { number, code, args } = JSON.parse(line);
    try {
      answer(number, { value: await new AsyncFunction("args", code)(args) });
    } catch (error) {
      answer(number, { error: `${error}` });
    }
  })
  .on("close", () => process.exit(0));
