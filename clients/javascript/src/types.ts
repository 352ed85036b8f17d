/** The options, events and messages of a client. `clients/spec.md` says how it behaves. */

export type State = "connecting" | "open" | "waiting" | "closed";

/** Each change of the state. `code` is that of the close, 1006 where there was none. */
export type StateEvent =
  | { state: "connecting" }
  | { state: "open"; again: boolean }
  | { state: "waiting"; code: number; delay: number }
  | {
      state: "closed";
      code: number;
      why: "called" | "code" | "unauthorized" | "forbidden";
    };

/** A message as the application gets it. */
export interface Message<T = unknown> {
  /** The value of a text in JSON, another text as a string, or the bytes of a binary message. */
  data: T;
  /** The kept room that it was sent to, for clients that recover. */
  room?: string;
  /** Its position in that room. */
  pos?: string;
  /** Whether `data` is a HubMessage. */
  hub: boolean;
}

/** A message to a user, or with acknowledgement; see docs/wire.md. */
export interface HubMessage<Data = Record<string, unknown>> {
  id: string;
  type: string;
  content: string;
  create_at: string;
  from?: string;
  to?: string;
  data?: Data;
  seq_no?: number;
  priority?: 1 | 2 | 3 | 4;
  require_ack?: boolean;
}

/** Events of a room; they are events of the client too, so that one listener can hear of all rooms. */
export interface RoomEvents<T = unknown> {
  message: Message<T>;
  /** The server has let the client in. */
  joined: { room: string };
  /** The server has not. */
  refused: { room: string; error: Refusal };
  /** What was missed has come, before this. */
  recovered: { room: string; missed: number };
  /** The client is a member, and named no position. */
  first: { room: string };
  /** Messages are missing; `room` is "" for messages to all clients. */
  gap: { room: string };
}

export interface ClientEvents<T = unknown> extends RoomEvents<T> {
  state: StateEvent;
  /** Whether the hub hears of the other hubs. */
  bus: boolean;
  /** What a listener, `load` or `getToken` has thrown. Without a listener it goes to the console. */
  error: unknown;
}

export type Failure = "closed" | "queue-full" | "timeout" | "lost";

/** A message or a request that was not sent or not answered. */
export class SendError extends Error {
  override name = "SendError";

  constructor(
    readonly code: Failure,
    text: string,
  ) {
    super(text);
  }
}

/** The error that the server answered a request with. */
export class Refusal extends Error {
  override name = "Refusal";

  constructor(
    readonly code: string,
    text: string,
  ) {
    super(text);
  }
}

/** A token, and when it ends in milliseconds since 1970. */
export type Token = string | { token: string; expires?: number } | null;

/** Where positions and ids outlast a reload: `sessionStorage` and `localStorage` are such. */
export interface ClientStorage {
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
}

/** What a client uses of the standard WebSocket. */
export interface Socket {
  binaryType: string;
  readonly bufferedAmount: number;
  readonly readyState: number;
  onopen: ((event: never) => void) | null;
  onmessage: ((event: never) => void) | null;
  onclose: ((event: never) => void) | null;
  onerror: ((event: never) => void) | null;
  send(data: string | Uint8Array<ArrayBuffer>): void;
  close(code?: number): void;
}

export type SocketClass = new (url: string, protocols?: string[]) => Socket;

/** See the table of options in `clients/spec.md`, which has the defaults. */
export interface Options {
  recover?: boolean;
  protocols?: string[];
  getToken?: () => Token | Promise<Token>;
  tokenQuery?: string;
  statusUrl?: string;
  json?: boolean;
  load?: (room: string, why: "first" | "gap") => void;
  storage?: ClientStorage;
  storageKey?: string;
  queueBytes?: number;
  requestTimeout?: number;
  minDelay?: number;
  maxDelay?: number;
  connectTimeout?: number;
  stableAfter?: number;
  renewBefore?: number;
  heartbeat?: boolean;
  heartbeatInterval?: number;
  heartbeatTimeout?: number;
  knownIds?: number;
  /** The class of WebSockets where there is no global one, such as that of `ws` in Node 20. */
  WebSocket?: SocketClass;
  /** For tests: clock, timers, chance and events of the page. */
  platform?: Partial<Platform>;
}

/** What a client needs of where it runs. */
export interface Platform {
  now(): number;
  setTimeout(fn: () => void, ms: number): unknown;
  clearTimeout(timer: never): void;
  random(): number;
  fetch(url: string, options: RequestInit): Promise<Pick<Response, "status" | "headers">>;
  hidden(): boolean;
  /** Has these called: when the network or the page is back, and when the page goes away. */
  watch(back: () => void, away: () => void): () => void;
  /** The beginning of the ids of requests, which nobody can guess. */
  idPrefix: string;
}
