/** Positions and known ids: bounded, in the order of their use, and kept in a storage. */

import type { ClientStorage } from "./types.js";

const SAVE_AFTER = 100;

/** A map whose newest entries are its last, and whose oldest go first. */
export class Memory extends Map<string, string> {
  #key: string;
  #most: number;
  #storage: ClientStorage | undefined;
  #changed = false;

  constructor(storage: ClientStorage | undefined, key: string, most: number) {
    super();
    this.#storage = storage;
    this.#key = key;
    this.#most = most;
    try {
      const pairs: unknown = JSON.parse(storage?.getItem(key) ?? "[]");
      for (const [name, value] of pairs as unknown[][]) {
        if (typeof name === "string" && typeof value === "string") this.set(name, value);
      }
    } catch {
      this.clear(); // it holds something else
    }
    this.#changed = false;
  }

  override set(name: string, value: string): this {
    this.#changed = true;
    super.delete(name);
    super.set(name, value);
    if (this.size > this.#most) super.delete(this.keys().next().value as string);
    return this;
  }

  override delete(name: string): boolean {
    this.#changed = true;
    return super.delete(name);
  }

  save(): void {
    if (!this.#changed || !this.#storage) return;
    this.#changed = false;
    try {
      this.#storage.setItem(this.#key, JSON.stringify([...this]));
    } catch {
      // Full, or forbidden: the client goes on without.
    }
  }
}

export { SAVE_AFTER };
