/** The options, events and messages of a client. `clients/spec.md` says how it behaves. */

/**
 * `connecting`: gets a token, or waits for its connection to open. `waiting`: has no connection, and will
 * connect by itself. `closed`: will not.
 */
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
  /** The same in every copy of a message. */
  id: string;
  /** Free text of the application. */
  type: string;
  /** The text, maybe empty. */
  content: string;
  /** When it was made, by RFC 3339 in UTC. */
  create_at: string;
  /** The sender, if the application names one. */
  from?: string;
  /** The recipient. */
  to?: string;
  /** Anything else. */
  data?: Data;
  /** The application's numbering. */
  seq_no?: number;
  /** From low to critical; 2 where it is left out. */
  priority?: 1 | 2 | 3 | 4;
  /** Whether the client has to acknowledge it, as it does by itself. */
  require_ack?: boolean;
}

/** Events of a room; they are events of the client too, so that one listener can hear of all rooms. */
export interface RoomEvents<T = unknown> {
  /** A message to the room; as an event of the client, any message. */
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

/** Events of a client. */
export interface ClientEvents<T = unknown> extends RoomEvents<T> {
  /** Each change of the state. */
  state: StateEvent;
  /** Whether the hub hears of the other hubs. */
  bus: boolean;
  /** What a listener, `load` or `getToken` has thrown. Without a listener it goes to the console. */
  error: unknown;
}

/**
 * `closed`: the client is. `queue-full`: more than `queueBytes` wait. `timeout`: no answer came in time.
 * `lost`: the connection ended before the answer.
 */
export type Failure = "closed" | "queue-full" | "timeout" | "lost";

/** A message or a request that was not sent or not answered. */
export class SendError extends Error {
  override name = "SendError";

  constructor(
    /** Why. */
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
    /** One of the hub's (`forbidden`, `not-found`, `invalid`, `limit`, `failed`, `unknown`), or the application's. */
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
  /** The text under a key. */
  getItem(key: string): string | null;
  /** Keeps a text under a key. */
  setItem(key: string, value: string): void;
}

/** The part of the standard WebSocket that a client uses. */
export interface Socket {
  binaryType: string;
  readonly bufferedAmount: number;
  readonly readyState: number;
  /** It is open. */
  onopen: ((event: never) => void) | null;
  /** A message has come; the event has its `data`. */
  onmessage: ((event: never) => void) | null;
  /** It has ended; the event has the `code`. */
  onclose: ((event: never) => void) | null;
  /** It failed; `onclose` follows. */
  onerror: ((event: never) => void) | null;
  /** Sends a message. */
  send(data: string | Uint8Array<ArrayBuffer>): void;
  /** Ends it with a close frame. */
  close(code?: number): void;
}

/** A class of standard WebSockets. */
export type SocketClass = new (url: string, protocols?: string[]) => Socket;

/** The options of a client. Times are in milliseconds. `clients/spec.md` says how each acts. */
export interface Options {
  /** Speak `wsc.1`, so that missed messages of kept rooms come after a reconnect; true by default. */
  recover?: boolean;
  /** The subprotocols of the application, in place of `wsc.1`. */
  protocols?: string[];
  /** Gives the token of a connection: before each one, before its end, and after the server refused it. */
  getToken?: () => Token | Promise<Token>;
  /** The query parameter that carries the token; without it a subprotocol entry does. */
  tokenQuery?: string;
  /** A route of the server that says by its status why a connection was refused. */
  statusUrl?: string;
  /** Read and write texts as JSON; true by default. */
  json?: boolean;
  /** Called when the state of a room has to be loaded: at first, and after a loss. */
  load?: (room: string, why: "first" | "gap") => void;
  /** Keeps positions and known ids over a reload; without it they are kept in memory. */
  storage?: ClientStorage;
  /** The beginning of the keys in the storage; `"wsc:"` and the url by default. */
  storageKey?: string;
  /** Most bytes that wait to be sent; 1,048,576 by default. */
  queueBytes?: number;
  /** For the answer to a request; 10,000 by default. */
  requestTimeout?: number;
  /** Bound of the wait after the first failure, which doubles with each further one; 1,000 by default. */
  minDelay?: number;
  /** Most of that bound; 30,000 by default. */
  maxDelay?: number;
  /** For a connection to open, and for `getToken`; 10,000 by default. */
  connectTimeout?: number;
  /** After so long an open connection counts as a success; 5,000 by default. */
  stableAfter?: number;
  /** So long before its end a token is renewed; 30,000 by default. */
  renewBefore?: number;
  /** Forces the heartbeat on or off; by default it is on once the hub has answered a request. */
  heartbeat?: boolean;
  /** Silence after which the client asks whether the connection lives; 25,000 by default. */
  heartbeatInterval?: number;
  /** For the answer to that; 10,000 by default. */
  heartbeatTimeout?: number;
  /** How many ids of HubMessages are remembered, so that copies are dropped; 2,000 by default. */
  knownIds?: number;
  /** The class of WebSockets where there is no global one, such as that of `ws` in Node 20. */
  WebSocket?: SocketClass;
  /** For tests: clock, timers, chance and events of the page. */
  platform?: Partial<Platform>;
}

/** What a client needs of the page or program that it runs in. */
export interface Platform {
  /** Milliseconds since 1970. */
  now(): number;
  /** As that of pages. */
  setTimeout(fn: () => void, ms: number): unknown;
  /** As that of pages. */
  clearTimeout(timer: never): void;
  /** From 0 up to 1, as `Math.random`. */
  random(): number;
  /** As that of pages; for `statusUrl`. */
  fetch(url: string, options: RequestInit): Promise<Pick<Response, "status" | "headers">>;
  /** Whether the page is hidden. */
  hidden(): boolean;
  /**
   * Has these called: when the network or the page is back; when the page goes away, and maybe is
   * kept in its browser's back/forward cache; and when it is shown from there.
   */
  watch(back: () => void, away: (kept: boolean) => void, again: () => void): () => void;
  /** The beginning of the ids of requests, which nobody can guess. */
  idPrefix: string;
}
