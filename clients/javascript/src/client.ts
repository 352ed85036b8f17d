/**
 * The connection: what `clients/spec.md` says, in its order. Comments name its rules.
 *
 * One field says where the client is: `state`. `#socket` is the connection that counts; what another
 * one still brings is dropped. `#turn` changes whenever the client goes on, so that an answer to an
 * older question (a token, the status route) has no effect.
 */

import { Emitter } from "./events.js";
import { Memory, SAVE_AFTER } from "./memory.js";
import { standardPlatform } from "./platform.js";
import { Refusal, SendError } from "./types.js";
import type {
  ClientEvents,
  Failure,
  HubMessage,
  Message,
  Options,
  Platform,
  RoomEvents,
  Socket,
  SocketClass,
  State,
  StateEvent,
  Token,
} from "./types.js";

type Payload = string | Uint8Array<ArrayBuffer>;

/** What waits to be sent, or for its answer. */
interface Outgoing {
  payload: Payload;
  size: number;
  /** Of a request; a message has none. */
  id?: string;
  retry?: boolean;
  timer?: unknown;
  resolve(value: unknown): void;
  reject(error: Error): void;
}

interface Head {
  room?: string;
  pos?: string;
  gap?: string;
  recovered?: boolean;
  missed?: number;
  first?: boolean;
  skipped?: boolean;
  bus?: boolean;
}

interface Answer {
  type: "answer";
  id: string;
  data?: unknown;
  error?: { code?: string; message?: string };
}

const OPEN = 1; // readyState of a WebSocket
const NORMAL = 1000;
const NO_CLOSE_FRAME = 1006;
const UNAUTHORIZED = 4401;
const ENDS = new Set([NORMAL, 1002, 1003, 1007, 1008, 1009, 1010, 4409]); // E1 to E3
const LONGEST_TIMER = 2 ** 31 - 1;
const MOST_POSITIONS = 1000;
const MOST_IN_HELLO = 100;
const HELLO_BYTES = 16_000;
const MOST_RETRY_AFTER = 300_000;
const QUIET = 5_000; // B3
const HIDDEN = 4; // W5

const DEFAULTS = {
  recover: true,
  json: true,
  queueBytes: 1 << 20,
  requestTimeout: 10_000,
  minDelay: 1_000,
  maxDelay: 30_000,
  connectTimeout: 10_000,
  stableAfter: 5_000,
  renewBefore: 30_000,
  heartbeatInterval: 25_000,
  heartbeatTimeout: 10_000,
  knownIds: 2_000,
};

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** A room, whose events come to its listeners. `Client.room` makes them. */
export class Room<T = unknown> extends Emitter<RoomEvents<T>> {
  /** Whether the server has said, on this connection, that the client is a member. */
  joined = false;
  #leave: () => void;

  /** @internal */
  constructor(
    /** Its id on the server. */
    readonly name: string,
    /** Whether the client asks the server to join it. */
    public asks: boolean,
    leave: () => void,
    failed: (error: unknown) => void,
  ) {
    super(failed);
    this.#leave = leave;
  }

  /** Leaves the room, and forgets it and its position (J5). */
  leave(): void {
    this.#leave();
  }

  /** @internal */
  override emit<Name extends keyof RoomEvents<T>>(
    name: Name,
    event: RoomEvents<T>[Name],
  ): unknown[] {
    return super.emit(name, event);
  }
}

/**
 * A connection to a hub that comes back.
 *
 * @typeParam In what messages hold.
 * @typeParam Out what is sent and asked.
 */
export class Client<In = unknown, Out = unknown> extends Emitter<ClientEvents<In>> {
  #state: State = "closed";
  #options: Options & typeof DEFAULTS;
  #url: URL;
  #class: SocketClass;
  #platform: Platform;

  #socket: Socket | undefined;
  #turn = 0;
  #opened = 0; // connections so far
  #openedAt = 0;
  #attemptAt = 0;
  #failures = 0;
  #token: string | undefined;
  #refused = false; // since the last stable connection: T5
  #held = 0; // no connection before that time: H3
  #resting = false; // until the page is shown again: W6
  #waitEnds = 0;
  #waits = 0; // the time of the wait and the answer of the status route, as far as they are due
  #renewed: Token | undefined; // of the next connection, once answers have come: T4
  #over = 0; // tokens in a row that had ended before they were used: T4
  #timers = new Set<unknown>(); // of the connection, the attempt or the wait

  #queue: Outgoing[] = [];
  #queued = 0; // bytes
  #unanswered = new Map<string, Outgoing>();
  #ids = 0;
  #answered = false; // the hub knows requests: B2
  #received = 0; // messages
  #heardAt = 0;
  #pinged = false; // and nothing has come since
  #handed = 0; // bytes that connections were given, and have not written at once: B5

  #rooms = new Map<string, Room<In>>();
  #joins = new Set<Room<In>>(); // not asked for yet on this connection
  #positions: Memory;
  #known: Memory;
  #saving = false;
  #reporting = false; // an error
  #unwatch: (() => void) | undefined;

  /**
   * @param url of the hub; in a page also a path of its own host.
   * @throws TypeError where the url is none, or there is no class of WebSockets.
   */
  constructor(url: string | URL, options: Options = {}) {
    super((error) => this.#report(error));
    const set = Object.entries(options).filter(([, value]) => value !== undefined);
    this.#options = { ...DEFAULTS, ...(Object.fromEntries(set) as Options) };
    this.#url = new URL(url, (globalThis as { location?: { href: string } }).location?.href);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    const known = options.WebSocket ?? (globalThis.WebSocket as unknown as SocketClass);
    if (!known) throw new TypeError("there is no WebSocket here: give options.WebSocket a class");
    this.#class = known;
    this.#platform = { ...standardPlatform(), ...options.platform };
    const key = options.storageKey ?? `wsc:${url}`;
    this.#positions = new Memory(options.storage, key + ":pos", MOST_POSITIONS);
    this.#known = new Memory(options.storage, key + ":ids", this.#options.knownIds);
  }

  /** The state that the last event `state` told of. */
  get state(): State {
    return this.#state;
  }

  /** Connects, if the client is closed or waits (S1). */
  connect(): void {
    if (this.#state === "waiting") return this.#begin();
    if (this.#state !== "closed") return;
    this.#failures = this.#over = 0;
    this.#refused = false;
    this.#held = 0;
    this.#unwatch = this.#platform.watch(
      () => this.#back(),
      (kept) => this.#leavePage(kept),
      () => this.#returnToPage(),
    );
    this.#begin();
  }

  /** Ends the connection for good (S2). What waits is rejected. */
  close(): void {
    if (this.#state !== "closed") this.#closeFor(NORMAL, "called");
  }

  /**
   * Sends a message, now or once the connection is open (Q1).
   *
   * @param data a string, bytes, or what can be JSON.
   * @returns a promise that is resolved when the message is handed to a connection.
   */
  send(data: Out | string | Uint8Array | ArrayBuffer): Promise<void> {
    this.#joinAll();
    return new Promise((resolve, reject) => {
      this.#put({ ...sized(this.#encode(data)), resolve: () => resolve(), reject });
    });
  }

  /**
   * Asks the application, and resolves with its answer (R).
   *
   * @param data what can be JSON.
   * @param options `retry`: ask again if the connection ends before the answer.
   */
  request<A = unknown>(
    data: Out,
    options: { timeout?: number; retry?: boolean } = {},
  ): Promise<A> {
    this.#joinAll();
    return new Promise((resolve, reject) => {
      const request: Outgoing = {
        ...this.#asking("request", { data }),
        retry: options.retry === true,
        resolve: (answer) => resolve(answer as A),
        reject,
      };
      const wait = options.timeout ?? this.#options.requestTimeout;
      request.timer = this.#platform.setTimeout(() => this.#giveUp(request), wait);
      this.#put(request);
    });
  }

  /**
   * A room that the client asks to join, now and on each further connection (J). One that is left
   * at once is not asked for.
   *
   * @param options `join: false` where the application joins the client by itself.
   */
  room<T extends In = In>(name: string, options: { join?: boolean } = {}): Room<T> {
    let room = this.#rooms.get(name);
    if (!room) {
      room = new Room<In>(
        name,
        false,
        () => this.#leave(name),
        (error) => this.#report(error),
      );
      this.#rooms.set(name, room);
    }
    if (options.join !== false && !room.asks) {
      room.asks = true;
      this.#joins.add(room);
      queueMicrotask(() => this.#joinAll()); // J1
    }
    return room as unknown as Room<T>;
  }

  // --- connecting ---

  #begin(renewed?: Token): void {
    const turn = this.#next();
    this.#resting = false;
    this.#attemptAt = this.#platform.now();
    this.#to({ state: "connecting" });
    if (turn !== this.#turn) return; // a listener has closed the client
    const { getToken } = this.#options;
    if (!getToken) return this.#open(undefined);
    if (renewed !== undefined) return this.#take(renewed);
    this.#after(this.#options.connectTimeout, () => this.#failed(NO_CLOSE_FRAME));
    this.#ask(
      getToken,
      (token) => this.#take(token),
      () => this.#failed(NO_CLOSE_FRAME),
    );
  }

  /** Calls `getToken`; its answer counts as long as the client has not gone on. */
  #ask(getToken: () => Token | Promise<Token>, then: (token: Token) => void, failed?: () => void): void {
    const turn = this.#turn;
    new Promise<Token>((resolve) => resolve(getToken())).then(
      (token) => turn === this.#turn && then(token),
      (error: unknown) => {
        if (turn !== this.#turn) return;
        this.#report(error);
        failed?.();
      },
    );
  }

  #take(token: Token): void {
    if (token === null) return this.#closeFor(NO_CLOSE_FRAME, "unauthorized"); // T3
    this.#open(typeof token === "string" ? { token } : token);
  }

  #open(token: { token: string; expires?: number } | undefined): void {
    this.#clearTimers();
    this.#token = token?.token;
    const { recover, protocols, tokenQuery } = this.#options;
    const url = new URL(this.#url);
    const offered = [...(protocols ?? (recover ? ["wsc.1"] : []))]; // C1
    if (recover && protocols) url.searchParams.set("wsc", "1");
    if (token) {
      if (tokenQuery) url.searchParams.set(tokenQuery, token.token); // T2
      else offered.push("bearer." + token.token);
    }
    let socket: Socket;
    try {
      socket = new this.#class(String(url), offered);
    } catch (error) {
      this.#report(error); // a token that no subprotocol can be
      return this.#failed(NO_CLOSE_FRAME);
    }
    this.#socket = socket;
    socket.binaryType = "arraybuffer";
    const ours = (fn: (event: never) => void) => (event: never) => {
      if (socket === this.#socket) fn(event); // S5
    };
    socket.onopen = ours(() => this.#ready(token?.expires));
    socket.onmessage = ours(({ data }: MessageEvent<string | ArrayBuffer>) => this.#receive(data));
    socket.onclose = ours(({ code }: CloseEvent) => this.#failed(code));
    socket.onerror = () => undefined; // `ws` throws without a listener; the close follows
    this.#after(this.#options.connectTimeout, () => this.#failed(NO_CLOSE_FRAME)); // C3
  }

  #ready(expires: number | undefined): void {
    this.#clearTimers();
    this.#state = "open";
    this.#openedAt = this.#heardAt = this.#platform.now();
    this.#pinged = false;
    this.#watchSilence(this.#options.heartbeatInterval);
    if (expires !== undefined) this.#renewBefore(expires);
    if (this.#options.recover) this.#socket?.send(this.#hello());
    this.#joins = new Set([...this.#rooms.values()].filter(({ asks }) => asks)); // J2
    this.#joinAll(); // C2
    this.#flush();
    this.#to({ state: "open", again: this.#opened++ > 0 });
  }

  // --- tokens ---

  #renewBefore(expires: number): void {
    const { getToken, renewBefore, minDelay, maxDelay } = this.#options;
    const left = expires - this.#platform.now();
    this.#over = left > 0 ? 0 : this.#over + 1;
    // Clocks that differ, and tokens that are short, must not have it reconnect without a pause.
    const floor = this.#over ? Math.min(maxDelay, minDelay * 2 ** (this.#over - 1)) : minDelay;
    this.#after(Math.min(Math.max(left - renewBefore, left / 2, floor), LONGEST_TIMER), () => {
      if (!getToken) return;
      this.#ask(getToken, (token) => {
        if (token === null) return; // T4: the connection goes on
        this.#renewed = token;
        this.#change();
      });
    });
  }

  /** Goes on with the next connection, once what was asked on this one is answered (T4). */
  #change(): void {
    if (this.#renewed === undefined || this.#unanswered.size) return;
    const token = this.#renewed;
    this.#drop(NORMAL);
    this.#begin(token);
  }

  /** The token was not taken (T5). */
  #renew(code: number): void {
    if (!this.#options.getToken || this.#refused) return this.#closeFor(code, "unauthorized");
    this.#refused = true;
    this.#begin();
  }

  // --- ends and waiting ---

  /** The connection has ended, or the attempt has failed. */
  #failed(code: number): void {
    const opened = this.#state === "open";
    this.#drop();
    const failures = this.#failures++;
    if (code === UNAUTHORIZED) return this.#renew(code);
    if (ENDS.has(code)) return this.#closeFor(code, "code");
    const { minDelay, maxDelay, statusUrl } = this.#options;
    const slower = this.#platform.hidden() ? HIDDEN : 1;
    const bound = Math.min(maxDelay, minDelay * 2 ** failures) * slower;
    this.#wait(code, this.#platform.random() * bound); // W1
    if (!opened && statusUrl) this.#askStatus(statusUrl);
  }

  #wait(code: number, delay: number): void {
    this.#next();
    this.#waitEnds = this.#platform.now() + delay;
    this.#waits = 1;
    this.#after(delay, () => this.#waited());
    this.#to({ state: "waiting", code, delay });
  }

  /** One of the two that the client waits for is over (H1). */
  #waited(): void {
    if (--this.#waits === 0) this.#begin();
  }

  #askStatus(url: string): void {
    const turn = this.#turn;
    let asking = true;
    const answered = (answer?: Pick<Response, "status" | "headers">): void => {
      if (turn !== this.#turn || !asking) return;
      asking = false;
      if (answer) this.#told(answer);
      if (turn === this.#turn) this.#waited();
    };
    this.#waits++;
    this.#after(this.#options.connectTimeout, answered);
    const headers: Record<string, string> = this.#token ? { Authorization: `Bearer ${this.#token}` } : {};
    this.#platform.fetch(url, { headers, cache: "no-store", redirect: "manual" }).then(answered, () => answered()); // H4
  }

  #told({ status, headers }: Pick<Response, "status" | "headers">): void {
    if (status === 401) return this.#renew(NO_CLOSE_FRAME);
    if (status === 403) return this.#closeFor(NO_CLOSE_FRAME, "forbidden");
    const seconds = Number(headers.get("Retry-After") ?? 0);
    if ((status !== 429 && status !== 503) || !(seconds > 0)) return;
    const held = Math.min(seconds * 1000, MOST_RETRY_AFTER);
    const delay = held + this.#platform.random() * this.#options.minDelay;
    const now = this.#platform.now();
    this.#held = now + held; // H3
    if (now + delay > this.#waitEnds) this.#wait(NO_CLOSE_FRAME, delay);
  }

  /** The network or the page is back (W4, B3). */
  #back(): void {
    const now = this.#platform.now();
    if (this.#state === "waiting") {
      if (now >= this.#attemptAt + this.#options.minDelay && now >= this.#held) this.#begin();
    } else if (this.#state === "open" && this.#pings() && now - this.#heardAt >= QUIET) {
      this.#ping();
    }
  }

  /** The page goes away, or into its browser's cache: an open connection would keep it out (W6). */
  #leavePage(kept: boolean): void {
    this.#save();
    if (!kept || this.#state === "closed" || this.#state === "waiting") return;
    this.#drop(NORMAL);
    this.#next();
    this.#resting = true;
    this.#to({ state: "waiting", code: NORMAL, delay: 0 });
  }

  #returnToPage(): void {
    if (this.#resting && this.#state === "waiting") this.#begin();
    else this.#back();
  }

  #closeFor(code: number, why: "called" | "code" | "unauthorized" | "forbidden"): void {
    this.#drop(NORMAL);
    this.#next();
    this.#queued = 0;
    for (const each of this.#queue.splice(0)) this.#fail(each, "closed"); // Q4
    this.#save();
    this.#unwatch?.();
    this.#to({ state: "closed", code, why });
  }

  /** Lets go of the connection, and of what it was to answer (R4). */
  #drop(code?: number): void {
    const socket = this.#socket;
    this.#socket = undefined;
    this.#clearTimers();
    const now = this.#platform.now();
    if (this.#state === "open" && now - this.#openedAt >= this.#options.stableAfter) {
      this.#failures = 0; // W3
      this.#refused = false;
    }
    this.#renewed = undefined;
    for (const room of this.#rooms.values()) room.joined = false;
    const unanswered = [...this.#unanswered.values()];
    this.#unanswered.clear();
    for (const each of unanswered) if (!each.retry) this.#fail(each, "lost");
    const again = unanswered.filter((each) => each.retry);
    this.#queue.unshift(...again);
    for (const each of again) this.#queued += each.size;
    socket?.close(code);
  }

  /** The client goes on: answers to older questions have no effect, timers are over. */
  #next(): number {
    this.#clearTimers();
    return ++this.#turn;
  }

  #to(event: StateEvent): void {
    this.#state = event.state;
    this.emit("state", event);
  }

  // --- sending ---

  #encode(data: unknown): Payload {
    if (data instanceof ArrayBuffer) return new Uint8Array(data);
    if (data instanceof Uint8Array) return data as Uint8Array<ArrayBuffer>;
    if (typeof data === "string") return data; // M5
    const text: string | undefined = JSON.stringify(data);
    if (text === undefined) throw new TypeError("this cannot be sent as JSON");
    return text;
  }

  #put(outgoing: Outgoing): void {
    if (this.#state === "closed") return this.#fail(outgoing, "closed");
    const held = this.#queued + this.#waiting();
    if (held + outgoing.size > this.#options.queueBytes) return this.#fail(outgoing, "queue-full"); // Q3
    this.#queue.push(outgoing);
    this.#queued += outgoing.size;
    this.#flush();
  }

  #flush(): void {
    while (this.#takes() && this.#queue.length) {
      const outgoing = this.#queue.shift() as Outgoing;
      this.#queued -= outgoing.size;
      this.#transmit(outgoing.payload);
      if (outgoing.id !== undefined) this.#unanswered.set(outgoing.id, outgoing);
      else outgoing.resolve(undefined);
    }
  }

  /** Whether messages go out: a connection that is closing would drop them without a word. */
  #takes(): boolean {
    return this.#state === "open" && this.#renewed === undefined && this.#socket?.readyState === OPEN;
  }

  #transmit(payload: Payload): void {
    const before = this.#waiting();
    this.#socket?.send(this.#options.recover ? withEmptyHead(payload) : payload); // Q5
    this.#handed += this.#waiting() - before;
  }

  /** Bytes that the connection has not written yet. */
  #waiting(): number {
    return this.#socket?.bufferedAmount ?? 0;
  }

  #fail(outgoing: Outgoing, code: Failure): void {
    this.#platform.clearTimeout(outgoing.timer as never);
    outgoing.reject(new SendError(code, FAILURES[code]));
  }

  #giveUp(request: Outgoing): void {
    if (!this.#unanswered.delete(request.id as string)) {
      const at = this.#queue.indexOf(request);
      if (at < 0) return;
      this.#queue.splice(at, 1);
      this.#queued -= request.size;
    }
    this.#fail(request, "timeout"); // R3
    this.#change();
  }

  /** A request of some type under the next id (R1). */
  #asking(type: string, fields: object): { payload: string; size: number; id: string } {
    const id = this.#platform.idPrefix + ++this.#ids;
    return { ...sized(JSON.stringify({ type, id, ...fields })), id };
  }

  // --- rooms ---

  #joinAll(): void {
    if (this.#state !== "open") return;
    for (const room of this.#joins) this.#join(room);
    this.#joins.clear();
  }

  #join(room: Room<In>): void {
    const outgoing: Outgoing = {
      ...this.#asking("join", { room: room.name }),
      resolve: () => {
        if (!room.asks) return; // it was left meanwhile
        room.joined = true;
        this.#tell(room.name, "joined", { room: room.name }); // J3
      },
      reject: (error) => {
        if (!room.asks || !(error instanceof Refusal)) return; // J4
        room.asks = false;
        this.#tell(room.name, "refused", { room: room.name, error });
      },
    };
    this.#askNow(outgoing);
  }

  #leave(name: string): void {
    const room = this.#rooms.get(name);
    if (!room) return;
    this.#rooms.delete(name);
    if (this.#positions.delete(name)) this.#saveSoon();
    if (room.asks && !this.#joins.delete(room) && this.#state === "open") {
      const nothing = (): void => undefined;
      this.#askNow({ ...this.#asking("leave", { room: name }), resolve: nothing, reject: nothing });
    }
    room.asks = room.joined = false;
  }

  /** Sends a request that does not wait in the queue. */
  #askNow(outgoing: Outgoing): void {
    this.#transmit(outgoing.payload);
    this.#unanswered.set(outgoing.id as string, outgoing);
    outgoing.timer = this.#platform.setTimeout(
      () => this.#giveUp(outgoing),
      this.#options.requestTimeout,
    );
  }

  /** An event of a room: to its listeners, then to those of the client. */
  #tell<Name extends keyof RoomEvents<In>>(
    name: string,
    event: Name,
    value: RoomEvents<In>[Name],
  ): unknown[] {
    const errors = this.#rooms.get(name)?.emit(event, value) ?? [];
    return [...errors, ...this.emit(event, value as ClientEvents<In>[Name])];
  }

  // --- receiving ---

  #receive(data: string | ArrayBuffer): void {
    this.#received++;
    this.#heardAt = this.#platform.now();
    this.#pinged = false;
    let payload: Payload = typeof data === "string" ? data : new Uint8Array(data);
    let head: Head = {};
    if (this.#options.recover) {
      const parted = part(payload);
      if (!parted) return this.#failed(NO_CLOSE_FRAME); // P9
      [head, payload] = parted;
    }
    const room = head.room ?? head.gap ?? "";
    if (head.gap !== undefined || head.recovered !== undefined) this.#moved(room, head);
    else if (head.bus !== undefined) this.emit("bus", head.bus); // P6
    else if (!head.skipped && (payload.length || head.room !== undefined || isEmpty(head))) {
      this.#message(head, payload); // P7
    }
    if (head.pos !== undefined) {
      this.#positions.set(room, head.pos); // P2
      this.#saveSoon();
    }
  }

  #moved(room: string, head: Head): void {
    if (head.recovered) {
      this.#tell(room, "recovered", { room, missed: head.missed ?? 0 });
      return;
    }
    const why = head.first ? "first" : "gap";
    this.#tell(room, why, { room });
    try {
      this.#options.load?.(room, why); // P8
    } catch (error) {
      this.#report(error);
    }
  }

  #message(head: Head, payload: Payload): void {
    const { room, pos } = head;
    let value: unknown = payload;
    let hub: HubMessage | undefined;
    if (typeof payload === "string") {
      const parsed = parse(payload);
      if (room === undefined && isAnswer(parsed) && this.#settle(parsed)) return;
      if (isHubMessage(parsed)) hub = parsed;
      if (hub || (this.#options.json && parsed !== undefined)) value = parsed; // M2
    }
    const message = { data: value, hub: hub !== undefined } as Message<In>;
    if (room !== undefined) message.room = room;
    if (pos !== undefined) message.pos = pos;
    if (hub?.require_ack) this.#acknowledge(hub, message);
    else this.#tell(room ?? "", "message", message);
  }

  /** Gives a message to the listeners once, and acknowledges it each time (A). */
  #acknowledge(hub: HubMessage, message: Message<In>): void {
    let answer = this.#known.get(hub.id);
    if (answer === undefined) {
      const errors = this.#tell(message.room ?? "", "message", message);
      answer = JSON.stringify({
        type: "ack",
        message_id: hub.id,
        ...(errors.length && { status: "failed", error: String(errors[0]).slice(0, 500) }),
      });
      this.#known.set(hub.id, answer);
      this.#saveSoon();
    }
    if (this.#state === "open") this.#transmit(answer);
  }

  /** Whether this is an answer to a request of ours (R5). */
  #settle(answer: Answer): boolean {
    const { idPrefix } = this.#platform;
    const number = Number(answer.id.slice(idPrefix.length));
    if (!answer.id.startsWith(idPrefix) || !(number >= 1 && number <= this.#ids)) return false;
    this.#answered = true;
    const request = this.#unanswered.get(answer.id);
    if (!request) return true;
    this.#unanswered.delete(answer.id);
    this.#platform.clearTimeout(request.timer as never);
    const { error } = answer;
    if (error) request.reject(new Refusal(error.code ?? "failed", error.message ?? ""));
    else request.resolve(answer.data ?? null);
    this.#change();
    return true;
  }

  // --- heartbeat ---

  #pings(): boolean {
    return this.#options.heartbeat ?? this.#answered; // B2
  }

  #watchSilence(wait: number): void {
    this.#after(wait, () => {
      const { heartbeatInterval } = this.#options;
      const left = this.#heardAt + heartbeatInterval - this.#platform.now();
      const quiet = left <= 0 || left > heartbeatInterval; // the clock was set back
      if (quiet && this.#pings()) this.#ping();
      this.#watchSilence(quiet ? heartbeatInterval : left);
    });
  }

  #ping(): void {
    if (this.#pinged) return;
    this.#pinged = true;
    const held = this.#waiting() > 0; // the ping waits behind that
    this.#transmit(this.#asking("ping", {}).payload);
    this.#await(this.#received, held);
  }

  /** Ends the connection, unless more has come by then than before (B1). */
  #await(before: number, held: boolean): void {
    const written = this.#handed - this.#waiting();
    this.#after(this.#options.heartbeatTimeout, () => {
      if (this.#received !== before) return;
      const goesOn = held && this.#handed - this.#waiting() > written; // B5
      if (goesOn) this.#await(before, this.#waiting() > 0);
      else this.#failed(NO_CLOSE_FRAME);
    });
  }

  // --- memory ---

  #hello(): string {
    const newest: [string, string][] = [];
    let size = 32;
    for (const pair of [...this.#positions].reverse().slice(0, MOST_IN_HELLO)) {
      size += encoder.encode(JSON.stringify(pair)).length;
      if (size > HELLO_BYTES) break;
      newest.unshift(pair);
    }
    return JSON.stringify({ hello: 1, pos: Object.fromEntries(newest) }) + "\n"; // P1
  }

  #saveSoon(): void {
    if (this.#saving) return;
    this.#saving = true;
    this.#platform.setTimeout(() => this.#save(), SAVE_AFTER);
  }

  #save(): void {
    this.#saving = false;
    this.#positions.save();
    this.#known.save();
  }

  // --- the rest ---

  #report(error: unknown): void {
    if (this.#reporting || !this.hasListeners("error")) return console.error(error);
    this.#reporting = true;
    this.emit("error", error);
    this.#reporting = false;
  }

  #after(ms: number, fn: () => void): void {
    const timer = this.#platform.setTimeout(() => {
      this.#timers.delete(timer);
      fn();
    }, ms);
    this.#timers.add(timer);
  }

  #clearTimers(): void {
    for (const timer of this.#timers) this.#platform.clearTimeout(timer as never);
    this.#timers.clear();
  }
}

const FAILURES: Record<Failure, string> = {
  closed: "the client is closed",
  "queue-full": "more than queueBytes wait to be sent",
  timeout: "no answer came in time",
  lost: "the connection ended before the answer",
};

function sized(payload: Payload): { payload: Payload & string; size: number } {
  const size = typeof payload === "string" ? encoder.encode(payload).length : payload.length;
  return { payload: payload as Payload & string, size };
}

function withEmptyHead(payload: Payload): Payload {
  if (typeof payload === "string") return "\n" + payload;
  const framed = new Uint8Array(payload.length + 1);
  framed[0] = 10;
  framed.set(payload, 1);
  return framed;
}

/** The head of a message of wsc.1, and its payload; undefined where there is no sound head. */
function part(data: Payload): [Head, Payload] | undefined {
  const end = typeof data === "string" ? data.indexOf("\n") : data.indexOf(10);
  if (end < 0) return undefined;
  const line = typeof data === "string" ? data.slice(0, end) : decoder.decode(data.subarray(0, end));
  const head = line ? parse(line) : {};
  return isObject(head) ? [head as Head, data.slice(end + 1) as Payload] : undefined;
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isEmpty(value: object): boolean {
  return Object.keys(value).length === 0;
}

function isAnswer(value: unknown): value is Answer {
  return isObject(value) && value.type === "answer" && typeof value.id === "string";
}

function isHubMessage(value: unknown): value is HubMessage {
  return (
    isObject(value) &&
    ["id", "type", "content", "create_at"].every((name) => typeof value[name] === "string")
  );
}

/** Makes a client and connects it: see Client. */
export function connect<In = unknown, Out = unknown>(
  url: string | URL,
  options?: Options,
): Client<In, Out> {
  const client = new Client<In, Out>(url, options);
  client.connect();
  return client;
}
