// The dialog about a client, a user, a room, or what was found; and the actions on them. The address
// of the page says which it is, so that the browser's own keys go back.

import { ACTS, Refused, ask } from "./ask.js";
import { button, field, fill, link, make, pairs } from "./elements.js";
import { bytes, clock, count, duration, seconds } from "./formats.js";

const EVERY = 2000; // ms between two questions

const find = (id) => document.getElementById(id);
const dialog = find("view");
let shown = null; // {kind, id, before}
let opener = null;
let isPaused = () => false;

function target() {
  const found = /^#(client|user|room|find)=(.+)$/s.exec(location.hash);
  if (!found) return null;
  try {
    return { kind: found[1], id: decodeURIComponent(found[2]) };
  } catch {
    return null; // no address that the page has made
  }
}

function route() {
  const wanted = target();
  if (!wanted) {
    shown = null;
    if (dialog.open) dialog.close();
    return;
  }
  if (dialog.open && shown?.kind === wanted.kind && shown.id === wanted.id) return;
  shown = { ...wanted, before: null };
  find("view-title").textContent = wanted.kind === "find" ? `Ids with “${wanted.id}”` : `${wanted.kind} ${wanted.id}`;
  find("view-state").textContent = "Loading";
  find("view-body").replaceChildren();
  find("view-actions").replaceChildren(...actionsOf(wanted));
  if (!dialog.open) {
    opener = document.activeElement;
    dialog.showModal();
  }
  dialog.scrollTop = 0;
  keepViewing(shown);
}

async function keepViewing(which) {
  while (which === shown) {
    try {
      if (!document.hidden && !isPaused()) await view(which);
    } catch (error) {
      if (which === shown) find("view-state").textContent = `It cannot be shown: ${error.message}`;
      if (error instanceof Refused) return;
    }
    if (which.kind === "find") return;
    await new Promise((resolve) => setTimeout(resolve, EVERY));
  }
}

async function view(which) {
  const { kind, id } = which;
  const found = await ask(kind, kind === "find" ? { text: id } : { id });
  if (which !== shown) return;
  if (kind === "client" && found === null) {
    find("view-state").textContent = "No hub has a client of this id: it has gone.";
    find("view-actions").replaceChildren();
    return;
  }
  const body = { client: ofClient, user: ofUser, room: ofRoom, find: ofFind }[kind](found, which);
  const focused = document.activeElement?.closest("#view-body a")?.getAttribute("href");
  find("view-body").replaceChildren(...body);
  if (focused) [...find("view-body").querySelectorAll("a")].find((each) => each.getAttribute("href") === focused)?.focus();
  const silent = found.silent?.length ? `No answer from ${found.silent.join(", ")}. ` : "";
  const trouble = found.trouble || found.stored_error || "";
  find("view-state").textContent = `${silent}${trouble}` || `At ${clock(Date.now() / 1000)}`;
}

function ofClient(client, which) {
  const before = which.before;
  which.before = client;
  const rate = (name, format) => {
    const passed = before ? client.now - before.now : client.now - client.connected;
    const more = before ? client[name] - before[name] : client[name];
    return `${format(passed > 0 ? more / passed : 0)}/s`;
  };
  const ago = (time) => `${duration(Math.max(0, client.now - time))} ago`;
  return [
    pairs([
      ["User", link("user", client.user)],
      ["Hub", client.hub],
      ["Device", client.device || "not known"],
      ["Address", client.address || "not known"],
      ["Subprotocol", client.subprotocol || "none"],
      ["Connected", ago(client.connected)],
      ["Last heard", ago(client.last_activity)],
      ["Round trip", client.round_trip === null ? "not known yet" : seconds(client.round_trip)],
      ["Queue", `${count(client.queued_messages)} messages, ${bytes(client.queued_bytes)}`],
      ["Not acknowledged", count(client.unacknowledged)],
      ["Messages in", `${count(client.messages_in)}, ${rate("messages_in", count)}`],
      ["Bytes in", `${bytes(client.bytes_in)}, ${rate("bytes_in", bytes)}`],
      ["Frames out", `${count(client.frames_sent)}, ${rate("frames_sent", count)}`],
      ["Bytes out", `${bytes(client.bytes_out)}, ${rate("bytes_out", bytes)}`],
      ["Dropped", count(client.dropped)],
      ["Conflated", count(client.conflated)],
    ]),
    make("h3", {}, `Rooms (${count(client.room_count)})`),
    links("room", client.rooms, client.room_count),
  ];
}

function ofUser(user) {
  const stored = user.stored === null ? "no store, or it does not answer" : `${count(user.stored)} messages`;
  return [
    pairs([
      ["Clients", count(user.client_count)],
      ["Stored", stored],
    ]),
    make("h3", {}, "Devices"),
    user.clients.length === 0
      ? make("p", { className: "empty" }, "The user has no client on any hub that answered.")
      : table(
          ["Client", "Device", "Hub", "Address", "Waiting", "Not acknowledged"],
          user.clients.map((each) => [
            link("client", each.id),
            each.device || "not known",
            each.hub,
            each.address,
            `${count(each.queued_messages)} (${bytes(each.queued_bytes)})`,
            count(each.unacknowledged),
          ]),
          4,
        ),
    more(user.clients.length, user.client_count),
  ];
}

function ofRoom(room) {
  const hubs = Object.entries(room.by_hub).map(([hub, size]) => `${hub}: ${count(size)}`);
  return [
    pairs([
      ["Members", count(room.member_count)],
      ["By hub", hubs.join(", ") || "none"],
      ["Users present", room.present === null ? "no presence" : count(room.present)],
      ["History", room.kept ? `the newest ${count(room.history.length)}` : "not kept"],
    ]),
    ...(room.history.length
      ? [
          make("h3", {}, "History"),
          make("ol", { className: "said" }, ...room.history.map((each) => make("li", { title: each.position }, each.text))),
        ]
      : []),
    make("h3", {}, "Members"),
    room.members.length === 0
      ? make("p", { className: "empty" }, "No hub that answered has members of this room.")
      : table(["Client", "User", "Hub"], room.members.map((each) => [link("client", each.id), link("user", each.user), each.hub]), 3),
    more(room.members.length, room.member_count),
  ];
}

function ofFind(found) {
  return ["client", "user", "room"].flatMap((kind) => [
    make("h3", {}, `${kind[0].toUpperCase()}${kind.slice(1)}s`),
    links(kind, found[`${kind}s`], found[`${kind}s`].length),
  ]);
}

function links(kind, ids, all) {
  if (ids.length === 0) return make("p", { className: "empty" }, "None.");
  const left = all - ids.length;
  const items = ids.map((id) => make("li", {}, link(kind, id)));
  if (left > 0) items.push(make("li", {}, `and ${count(left)} more`));
  return make("ul", { className: "links" }, ...items);
}

function more(some, all) {
  return make("p", { className: "empty" }, all > some ? `and ${count(all - some)} more` : "");
}

function table(heads, rows, numbers) {
  const head = make("tr", {}, ...heads.map((text, place) => make("th", { scope: "col", className: place >= numbers ? "number" : "" }, text)));
  const body = make("tbody", {});
  fill(body, rows, (row) => row, (row) => row, numbers);
  const region = make("div", { className: "wide", tabIndex: 0, role: "region", ariaLabel: heads[0] === "Client" ? "Clients" : heads[0] });
  region.append(make("table", {}, make("thead", {}, head), body));
  return region;
}

// --- actions ---

function actionsOf({ kind, id }) {
  if (kind === "find" || !ACTS) return [];
  const forms = [
    form("Send", `Text for ${kind === "room" ? "all members" : `this ${kind}`}`, "textarea", (text) =>
      act({ ask: `send_to_${kind}`, id, text }), true),
  ];
  if (kind !== "room") forms.push(disconnecting(kind, id));
  return forms;
}

function form(label, text, tag, submit, required) {
  const input = make(tag, { maxLength: 8000, required, rows: 2 });
  const made = make("form", {}, field(text, input, "grow"), button(label));
  made.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (await submit(input.value)) input.value = "";
  });
  return made;
}

function disconnecting(kind, id) {
  const code = make("input", { type: "number", min: 1000, max: 4999, value: 1000, required: true });
  const reason = make("input", { maxLength: 100 });
  const made = make("form", {}, field("Close code", code), field("Reason, for the client", reason, "grow"), button("Disconnect", "danger"));
  made.addEventListener("submit", (event) => {
    event.preventDefault();
    if (confirm(`Disconnect ${kind} ${id}?`)) {
      act({ ask: `disconnect_${kind}`, id, code: Number(code.value), reason: reason.value });
    }
  });
  return made;
}

async function act(action) {
  const buttons = find("view-actions").querySelectorAll("button");
  for (const each of buttons) each.disabled = true;
  let text;
  try {
    const done = await ask("act", {}, action);
    text = `Done: ${done.text}.`;
    return true;
  } catch (error) {
    text = `Not done: ${error.message}`;
    return false;
  } finally {
    for (const each of buttons) each.disabled = false;
    const place = make("p", { role: "status", className: "outcome" }, text);
    find("view-actions").querySelector(".outcome")?.remove();
    find("view-actions").append(place);
  }
}

// Shows what the address says, from now on; nothing is asked for while `paused()`.
export function startViewing(paused) {
  isPaused = paused;
  find("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    if (dialog.open) return; // another view was opened before this event came
    shown = null;
    if (location.hash) history.replaceState(null, "", location.pathname);
    opener?.focus();
  });
  addEventListener("popstate", route);
  addEventListener("hashchange", route);
  route();
}

// Opens a view. Firefox tells nothing of a first change of `location.hash` in a page that was opened
// with a password in its address.
export function open(kind, id) {
  history.pushState(null, "", `#${kind}=${encodeURIComponent(id)}`);
  route();
}
