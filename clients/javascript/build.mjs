// Builds dist/: modules (ESM and CommonJS) and types of both entry points, and wsc-client.min.js, one
// file for a <script> whose names are in `wsc`, which `--demo` also puts into the package of the server.
// `--test` builds the tests into build/test instead.

import { execFileSync } from "node:child_process";
import { copyFileSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { build } from "esbuild";

const common = { bundle: true, target: "es2022", logLevel: "warning" };

if (process.argv.includes("--test")) {
  rmSync("build/test", { recursive: true, force: true });
  await build({
    ...common,
    entryPoints: readdirSync("test")
      .filter((name) => name.endsWith(".test.ts"))
      .map((name) => `test/${name}`),
    format: "esm",
    platform: "node",
    packages: "external",
    outdir: "build/test",
    outExtension: { ".js": ".mjs" },
  });
} else {
  rmSync("dist", { recursive: true, force: true });
  const entryPoints = ["src/index.ts", "src/react.ts"];
  // The hooks import the client and do not hold a second one.
  const apart = (extension) => ({
    name: "apart",
    setup({ onResolve }) {
      onResolve({ filter: /^\.\/index\.js$/ }, ({ importer }) =>
        importer.endsWith("react.ts") ? { path: `./index.${extension}`, external: true } : undefined,
      );
    },
  });
  for (const [format, extension] of [["esm", "js"], ["cjs", "cjs"]]) {
    await build({
      ...common,
      entryPoints,
      format,
      external: ["react"],
      plugins: [apart(extension)],
      outdir: "dist",
      outExtension: { ".js": `.${extension}` },
    });
  }
  await build({
    ...common,
    entryPoints: ["src/index.ts"],
    format: "iife",
    globalName: "wsc",
    minify: true,
    outfile: "dist/wsc-client.min.js",
  });
  if (process.argv.includes("--demo")) {
    copyFileSync("dist/wsc-client.min.js", "../../wsc_fast/demo/wsc-client.min.js");
  }
  const tsc = createRequire(import.meta.url).resolve("typescript/bin/tsc");
  execFileSync(process.execPath, [tsc, "-p", "tsconfig.build.json"], { stdio: "inherit" });
  // For `require` in TypeScript, which reads the kind of a module off the name of its types.
  for (const name of readdirSync("dist").filter((file) => file.endsWith(".d.ts"))) {
    const types = readFileSync(`dist/${name}`, "utf8").replaceAll(/"(\.\/\w+)\.js"/g, '"$1.cjs"');
    writeFileSync(`dist/${name.replace(".d.ts", ".d.cts")}`, types);
  }
}
