// Writes the examples of README.md into build/readme, a module each, for `npm run typecheck`. Names that an example
// uses and does not declare are those of the examples before it, or of the application.

import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";

const FOLDER = "build/readme";
const OF_OTHERS = {
  connect: 'import { connect } from "wsc-client";',
  client: 'declare const client: import("wsc-client").Client;',
  show: "declare function show(state: unknown): void;",
};

rmSync(FOLDER, { recursive: true, force: true });
mkdirSync(FOLDER, { recursive: true });
const blocks = [...readFileSync("README.md", "utf8").matchAll(/^```(?:js|ts|tsx)\n(.*?)^```$/gms)];
for (const [number, [, code]] of blocks.entries()) {
  const needed = Object.entries(OF_OTHERS)
    .filter(([name]) => new RegExp(`(?<!\\.)\\b${name}\\b`).test(code))
    .filter(([name]) => !new RegExp(`(?:const ${name}|import \\{[^}]*\\b${name}|const \\{[^}]*\\b${name})\\b`).test(code))
    .map(([, declaration]) => declaration + "\n");
  writeFileSync(`${FOLDER}/example${number + 1}.tsx`, `${needed.join("")}${code}\nexport {};\n`);
}
if (blocks.length < 7) throw new Error(`README.md has ${blocks.length} examples`);
