/** A world for one client: a virtual clock, sockets, a page and a storage, which note what it does. */

import { isDeepStrictEqual } from "node:util";
import { Client, type ClientStorage, type Message, type Options, type Token } from "../src/index.js";
import type { Platform } from "../src/types.js";

export type Step = { do: string; expect?: unknown[]; settled?: unknown[] } & Record<string, unknown>;

export interface Case {
  name: string;
  rules: string[];
  options?: Record<string, unknown>;
  random?: number;
  begin?: "open";
  steps: Step[];
}

const URL_OF_HUB = "ws://hub.test/ws";
const EVENTS = ["joined", "recovered", "first", "gap", "bus", "state"] as const;

class Socket {
  binaryType = "";
  bufferedAmount = 0;
  readyState = 1;
  onopen: ((event: never) => void) | null = null;
  onmessage: ((event: never) => void) | null = null;
  onclose: ((event: never) => void) | null = null;
  onerror: ((event: never) => void) | null = null;
  ended = false;

  constructor(
    private world: World,
    url: string,
    protocols: string[] = [],
  ) {
    world.sockets.push(this);
    world.did.push({ socket: { url, protocols } });
  }

  send(data: string | Uint8Array): void {
    this.world.did.push({ sent: frame(data, this.world.aware) });
  }

  close(code?: number): void {
    if (this.ended) return;
    this.ended = true;
    this.world.did.push({ closing: code ?? null });
  }
}

/** A frame as cases.json has it: its head, and its payload as JSON where that is an object or a list. */
function frame(data: string | Uint8Array, aware: boolean): Record<string, unknown> {
  let payload = Buffer.from(data as string);
  const seen: Record<string, unknown> = {};
  if (aware) {
    const end = payload.indexOf("\n");
    seen.head = end ? JSON.parse(payload.subarray(0, end).toString()) : null;
    payload = payload.subarray(end + 1);
  }
  if (typeof data !== "string") return { ...seen, bytes: payload.toString("base64") };
  const text = payload.toString();
  return /^[[{]/.test(text) ? { ...seen, json: JSON.parse(text) } : { ...seen, text };
}

export class World implements ClientStorage {
  did: unknown[] = [];
  settled: unknown[] = [];
  sockets: Socket[] = [];
  readonly aware: boolean;
  private client!: Client;
  private now = 0;
  private timers: { at: number; fn: () => void }[] = [];
  private hidden = false;
  private back: () => void = () => undefined;
  private away: (kept: boolean) => void = () => undefined;
  private again: () => void = () => undefined;
  private tokens: ((token: Token | Promise<Token>) => void)[] = [];
  private answers: { resolve(answer: unknown): void; reject(error: Error): void }[] = [];
  private stored = new Map<string, string>();
  private throwing: string | undefined;

  constructor(private from: Case) {
    this.aware = from.options?.recover !== false;
    const { storage } = from.options ?? {};
    if (typeof storage === "object") this.stored = new Map(Object.entries(storage as object));
    this.reload();
  }

  getItem(key: string): string | null {
    return this.stored.get(key) ?? null;
  }

  setItem(key: string, value: string): void {
    this.stored.set(key, value);
    this.did.push({ stored: { [key]: JSON.parse(value) } });
  }

  private reload(): void {
    const { getToken, storage, ...options } = this.from.options ?? {};
    const world = this;
    const given: Options = {
      ...options,
      WebSocket: class extends Socket {
        constructor(url: string, protocols?: string[]) {
          super(world, url, protocols);
        }
      },
      load: (room, why) => void this.did.push({ load: [room, why] }),
      platform: this.platform(),
    };
    if (storage) given.storage = this;
    if (getToken) {
      given.getToken = () => {
        this.did.push({ getToken: true });
        return new Promise((resolve) => this.tokens.push(resolve));
      };
    }
    this.client = new Client(URL_OF_HUB, given);
    for (const name of EVENTS) this.client.on(name, (event) => this.did.push({ [name]: event }));
    this.client.on("error", () => this.did.push({ error: true }));
    this.client.on("refused", ({ room, error }) =>
      this.did.push({ refused: { room, code: error.code } }),
    );
    this.client.on("message", (message) => this.heard(message));
  }

  private heard({ data, ...rest }: Message): void {
    const shown = data instanceof Uint8Array ? { bytes: Buffer.from(data).toString("base64") } : { data };
    this.did.push({ message: { ...shown, ...rest } });
    if (this.throwing) throw new Error(this.throwing);
  }

  private platform(): Platform {
    return {
      now: () => this.now,
      setTimeout: (fn, ms) => {
        const timer = { at: this.now + ms, fn };
        this.timers.push(timer);
        return timer;
      },
      clearTimeout: (timer: never) => {
        this.timers = this.timers.filter((other) => other !== timer);
      },
      random: () => this.from.random ?? 0.5,
      fetch: (url, { headers }) => {
        const token = (headers as Record<string, string>).Authorization?.replace("Bearer ", "");
        this.did.push({ status: { url, token: token ?? null } });
        return new Promise((resolve, reject) =>
          this.answers.push({ resolve: resolve as (answer: unknown) => void, reject }),
        );
      },
      hidden: () => this.hidden,
      watch: (back, away, again) => {
        [this.back, this.away, this.again] = [back, away, again];
        return () => (this.back = this.away = this.again = () => undefined);
      },
      idPrefix: "q",
    };
  }

  /** Does a step, and all that follows of it at this time. */
  async act(step: Step): Promise<void> {
    const socket = typeof step.on === "number" ? this.sockets[step.on - 1] : this.sockets.at(-1);
    switch (step.do) {
      case "advance":
        return this.advance(step.ms as number);
      case "connect":
        this.client.connect();
        break;
      case "close":
        this.client.close();
        break;
      case "open":
        socket?.onopen?.({} as never);
        break;
      case "receive": {
        const data = "text" in step ? step.text : buffer(step.bytes as string);
        socket?.onmessage?.({ data } as never);
        break;
      }
      case "end":
        if (socket) socket.ended = true;
        socket?.onclose?.({ code: step.code } as never);
        break;
      case "online":
        this.back();
        break;
      case "visible":
        this.hidden = false;
        this.back();
        break;
      case "hidden":
        this.hidden = true;
        break;
      case "away":
        this.away(step.kept === true);
        break;
      case "shown":
        this.again();
        break;
      case "held":
        socket!.bufferedAmount = step.bytes as number;
        break;
      case "reload":
        this.sockets.at(-1)!.ended = true;
        this.timers = [];
        this.reload();
        break;
      case "token": {
        const { value, expires } = step as { value?: string | null; expires?: number };
        const token = value === null || value === undefined ? null : { token: value, expires };
        this.tokens.shift()?.(step.error ? Promise.reject(new Error("no token")) : token);
        break;
      }
      case "status": {
        const headers = new Headers(step.retryAfter ? { "Retry-After": String(step.retryAfter) } : {});
        const answer = this.answers.shift();
        if (step.error) answer?.reject(new Error("no network"));
        else answer?.resolve({ status: step.code, headers });
        break;
      }
      case "send":
        this.note(step, this.client.send("bytes" in step ? buffer(step.bytes as string) : step.data));
        break;
      case "request":
        this.note(step, this.client.request(step.data, { retry: step.retry === true }));
        break;
      case "room":
        {
          const room = this.client.room(step.name as string, { join: step.join !== false });
          if (step.leave) room.leave();
        }
        break;
      case "leave":
        this.client.room(step.name as string, { join: false }).leave();
        break;
      case "throw":
        this.throwing = step.text as string;
        break;
      case "calm":
        this.throwing = undefined;
        break;
      default:
        throw new Error(`no such step: ${step.do}`);
    }
    await settle();
  }

  private async advance(ms: number): Promise<void> {
    const end = this.now + ms;
    for (;;) {
      const next = this.timers.filter(({ at }) => at <= end).sort((a, b) => a.at - b.at)[0];
      if (!next) break;
      this.timers = this.timers.filter((other) => other !== next);
      this.now = Math.max(this.now, next.at);
      next.fn();
      await settle();
    }
    this.now = end;
  }

  private note(step: Step, promise: Promise<unknown>): void {
    promise.then(
      (value) => this.settled.push([step.as, "resolved", value ?? null]),
      (error: { code: string }) => this.settled.push([step.as, "rejected", error.code]),
    );
  }
}

function buffer(base64: string): ArrayBuffer {
  return new Uint8Array(Buffer.from(base64, "base64")).buffer;
}

/** Lets all promises go on that can. */
function settle(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** Whether something is as expected; "*" stands for any text. */
export function matches(seen: unknown, expected: unknown): boolean {
  if (expected === "*") return typeof seen === "string";
  if (typeof expected !== "object" || expected === null || typeof seen !== "object" || seen === null) {
    return isDeepStrictEqual(seen, expected);
  }
  const [one, other] = [Object.entries(seen), Object.entries(expected)];
  return (
    Array.isArray(seen) === Array.isArray(expected) &&
    one.length === other.length &&
    other.every(([key, value]) => matches((seen as Record<string, unknown>)[key], value))
  );
}
