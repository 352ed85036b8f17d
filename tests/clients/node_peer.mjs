// A WebSocket client for node_peers.py: commands come as JSON lines, events go out as such.
// Arguments: the address, subprotocols with commas, and from where to require `ws` ("" for node's).

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [url, offered, module] = process.argv.slice(2);
const Client = module ? createRequire(module)("ws") : WebSocket;
// All that `ws` sends is compressed, if the server lets it; node's own takes no such options.
const options = module ? [{ perMessageDeflate: { threshold: 0 } }] : [];

function tell(...event) {
  process.stdout.write(JSON.stringify(event) + "\n");
}

function unpacked([kind, data]) {
  return kind === "text" ? data : Buffer.from(data, "base64");
}

const ws = new Client(url, offered ? offered.split(",") : [], ...options);
ws.binaryType = "arraybuffer";
ws.addEventListener("open", () => tell("open", ws.protocol || null));
ws.addEventListener("message", ({ data }) => {
  if (typeof data === "string") tell("message", "text", data);
  else tell("message", "binary", Buffer.from(data).toString("base64"));
});
ws.addEventListener("close", ({ code, reason, wasClean }) => tell("close", code, reason, wasClean));
ws.addEventListener("error", ({ message, error }) => tell("error", message || String(error)));

const commands = {
  send: (...message) => ws.send(unpacked(message)),
  // Only `ws` can.
  parts: (...parts) =>
    parts.forEach((part, at) => ws.send(unpacked(part), { fin: at === parts.length - 1 })),
  close: (code, reason) => ws.close(code, reason),
};

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const [command, ...values] = JSON.parse(line);
    commands[command](...values);
  })
  .on("close", () => process.exit(0));
