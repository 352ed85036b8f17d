// A client in a page, or in node, that writes down all that happens to it. `wsc` is the package.
//
// follow(url, rooms, options, seed, life) connects. An entry of the record is the time, the kind, and
// values: "message" with the room and the value, an event of the client with what it has, "asked" and
// "answered" with the number of a request, "token" with its end.

globalThis.follow = (url, rooms, options, seed, life) => {
  const record = [];
  const note = (...entry) => record.push([Date.now(), ...entry]);

  // A sequence of numbers that the seed decides (mulberry32).
  const chance = () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };

  // Each token lives for `life` milliseconds at least, and twice that at most. Half of them do not say
  // when they end, so that the hub closes the connection with 4401.
  const getToken = async () => {
    const expires = Date.now() + life * (1 + chance());
    const token = String(expires / 1000);
    note("token", expires);
    return chance() < 0.5 ? token : { token, expires };
  };

  const client = new wsc.Client(url, {
    ...options,
    ...globalThis.inNode,
    ...(life && { getToken, tokenQuery: "token", renewBefore: life / 4 }),
    platform: { random: chance },
  });
  for (const name of ["joined", "recovered", "first", "gap"]) {
    client.on(name, ({ room, missed = 0 }) => note(name, room, missed));
  }
  client.on("message", ({ data, room = null }) => note("message", room, data));
  client.on("state", ({ state, code = 0, why = "" }) => note("state", state, code, why));
  client.on("refused", ({ room, error }) => note("refused", room, error.code));
  client.on("bus", (heard) => note("bus", heard));
  client.on("error", (error) => note("error", String(error)));
  for (const room of rooms) client.room(room);

  let asked = 0;
  const ask = () => {
    const number = asked++;
    note("asked", number);
    client.request({ number }, { retry: true, timeout: 120_000 }).then(
      (answer) => note("answered", number, answer),
      (error) => note("rejected", number, String(error)),
    );
  };
  let asking;

  globalThis.followed = {
    client,
    record,
    /** Asks each `ms` milliseconds from now on; 0: asks no more. */
    askEach(ms) {
      clearInterval(asking);
      if (ms) asking = setInterval(ask, ms);
    },
  };
  client.connect();
};
