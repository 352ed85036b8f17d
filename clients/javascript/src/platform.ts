/** Where a client runs: a page, or a program without one. */

import type { Platform } from "./types.js";

type Target = Partial<Pick<EventTarget, "addEventListener" | "removeEventListener">>;

const page = globalThis as Target & { document?: Target & { hidden: boolean } };

export function standardPlatform(): Platform {
  return {
    now: () => Date.now(),
    setTimeout: (fn, ms) => setTimeout(fn, ms),
    clearTimeout: (timer) => clearTimeout(timer),
    random: () => Math.random(),
    fetch: (url, options) => fetch(url, options),
    hidden: () => page.document?.hidden === true,
    watch(back, away) {
      const visible = (): void => {
        if (!page.document?.hidden) back();
      };
      const listeners: [Target | undefined, string, () => void][] = [
        [page, "online", back],
        [page, "pagehide", away],
        [page.document, "visibilitychange", visible],
      ];
      for (const [target, name, fn] of listeners) target?.addEventListener?.(name, fn);
      return () => {
        for (const [target, name, fn] of listeners) target?.removeEventListener?.(name, fn);
      };
    },
    idPrefix: Math.random().toString(36).slice(2, 12) + "-",
  };
}
