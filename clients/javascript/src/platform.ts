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
    watch(back, away, again) {
      const visible = (): void => {
        if (!page.document?.hidden) back();
      };
      const hide = (event: Event): void => away((event as PageTransitionEvent).persisted === true);
      const show = (event: Event): void => {
        if ((event as PageTransitionEvent).persisted) again();
      };
      const listeners: [Target | undefined, string, (event: Event) => void][] = [
        [page, "online", back],
        [page, "pagehide", hide],
        [page, "pageshow", show],
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
