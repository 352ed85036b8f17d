/** The package as it is built: its size, and its two kinds of modules and one file for a <script>. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import test from "node:test";
import { runInNewContext } from "node:vm";
import { gzipSync } from "node:zlib";

const root = process.cwd();
const require = createRequire(`${root}/package.json`);

test("the client has less than 8 KB, minified and compressed", () => {
  const size = gzipSync(readFileSync("dist/wsc-client.min.js"), { level: 9 }).length;
  assert.ok(size < 8_000, `${size} bytes`);
});

test("import and require give the same names", async () => {
  const names = ["Client", "Refusal", "Room", "SendError", "connect"];
  assert.deepEqual(Object.keys(require("wsc-client") as object).sort(), names);
  const url = `${root}/dist/index.js`;
  assert.deepEqual(Object.keys((await import(url)) as object).sort(), names);
  const hooks = ["useHub", "usePresence", "useRoom"];
  assert.deepEqual(Object.keys(require("wsc-client/react") as object).sort(), hooks);
});

test("the file for a script has its names in wsc, and needs nothing but the standard", () => {
  const context: Record<string, unknown> = { TextEncoder, TextDecoder };
  const script = readFileSync("dist/wsc-client.min.js", "utf8");
  runInNewContext(`${script};globalThis.seen = typeof wsc.connect`, context);
  assert.equal(context.seen, "function");
});

test("there is no dependency at run time", () => {
  const { dependencies } = require("./package.json") as { dependencies?: object };
  assert.equal(dependencies, undefined);
});
