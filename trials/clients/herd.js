// Many clients in one node, which write down when they try to connect. `wsc` is the package, `Light` a class of
// WebSockets that offers no compression. `gather` connects them to a hub, `simulate` has them lose one on a
// virtual clock.

globalThis.gather = async (url, count, options, each) => {
  const attempts = [];
  const opened = [];
  const ended = [];
  const clients = [];
  for (let number = 0; number < count; number++) {
    const client = new wsc.Client(url, { ...options, WebSocket: Light });
    client.on("state", ({ state }) => {
      if (state === "connecting") attempts.push(Date.now());
      else if (state === "open") opened.push(Date.now());
      else ended.push(Date.now());
    });
    client.connect();
    clients.push(client);
    if (number % each === 0) await new Promise((resolve) => setTimeout(resolve, 100));
  }
  const open = () => clients.filter(({ state }) => state === "open").length;
  const close = () => clients.forEach((client) => client.close());
  globalThis.herd = { attempts, opened, ended, open, close };
};

/** Timers on a clock that goes on from one to the next: a binary heap. */
class Clock {
  now = 0;
  #heap = [];
  #order = 0;

  set(fn, ms) {
    const timer = { at: this.now + ms, order: this.#order++, fn };
    const heap = this.#heap;
    let place = heap.push(timer) - 1;
    while (place) {
      const parent = (place - 1) >> 1;
      if (!before(timer, heap[parent])) break;
      heap[place] = heap[parent];
      place = parent;
    }
    heap[place] = timer;
    return timer;
  }

  /** Has all timers fire that are due by then. */
  advance(until) {
    while (this.#heap.length && this.#heap[0].at <= until) {
      const timer = this.#pop();
      this.now = timer.at;
      timer.fn?.();
    }
    this.now = until;
  }

  #pop() {
    const heap = this.#heap;
    const first = heap[0];
    const last = heap.pop();
    if (first === last) return first;
    let place = 0;
    for (;;) {
      let child = 2 * place + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && before(heap[child + 1], heap[child])) child++;
      if (!before(heap[child], last)) break;
      heap[place] = heap[child];
      place = child;
    }
    heap[place] = last;
    return first;
  }
}

const before = (one, other) => one.at < other.at || (one.at === other.at && one.order < other.order);

/**
 * Has `count` clients lose a hub that is away for `away` milliseconds, and takes `rate` connections a second then, as
 * many at once. Returns the times of attempts and of connections, in milliseconds after the loss.
 */
globalThis.simulate = (count, options, away, rate, within) => {
  const clock = new Clock();
  const sockets = new Set();
  const attempts = [];
  const opened = [];
  const settled = 60_000; // before the loss, so that the former failures are forgotten
  let level = rate;
  let filled = 0;
  const takes = () => {
    if (clock.now < settled) return true;
    if (clock.now < settled + away) return false;
    level = Math.min(rate, level + ((clock.now - filled) / 1000) * rate);
    filled = clock.now;
    if (level < 1) return false;
    level--;
    return true;
  };
  class Socket {
    readyState = 1;
    bufferedAmount = 0;
    constructor() {
      clock.set(() => {
        if (!takes()) return this.onclose({ code: 1006 });
        sockets.add(this);
        this.onopen();
      }, 1);
    }
    send() {}
    close() {}
  }
  const platform = {
    now: () => clock.now,
    setTimeout: (fn, ms) => clock.set(fn, ms),
    clearTimeout: (timer) => {
      if (timer) timer.fn = undefined;
    },
    hidden: () => false,
    watch: () => () => undefined,
  };
  let open = 0;
  for (let number = 0; number < count; number++) {
    const client = new wsc.Client("ws://hub.test/ws", { ...options, WebSocket: Socket, platform });
    client.on("state", ({ state }) => {
      if (state === "open") open++;
      if (clock.now <= settled) return;
      if (state === "connecting") attempts.push(clock.now - settled);
      if (state === "open") opened.push(clock.now - settled);
    });
    client.connect();
  }
  clock.advance(settled);
  filled = settled + away;
  for (const socket of [...sockets]) socket.onclose({ code: 1006 });
  while (opened.length < count && clock.now < settled + within) clock.advance(clock.now + 1000);
  return [attempts, opened];
};
