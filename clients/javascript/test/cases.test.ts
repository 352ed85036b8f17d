/** All cases of clients/cases.json, on a virtual clock. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { World, matches, type Case } from "./world.js";

const { cases } = JSON.parse(readFileSync("../cases.json", "utf8")) as { cases: Case[] };

for (const each of cases) {
  test(each.name, async () => {
    const world = new World(each);
    if (each.begin === "open") {
      await world.act({ do: "connect" });
      await world.act({ do: "open" });
      world.did = [];
    }
    for (const [number, step] of each.steps.entries()) {
      await world.act(step);
      const where = `step ${number + 1}, ${step.do}`;
      const expected = step.expect ?? [];
      if (!matches(world.did, expected)) assert.deepEqual(world.did, expected, where);
      assert.deepEqual(world.settled, step.settled ?? [], where);
      world.did = [];
      world.settled = [];
    }
  });
}
