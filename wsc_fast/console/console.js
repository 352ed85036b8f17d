// The script of the console: asks for JSON every two seconds, and shows it.
//
// All that comes from the hub may hold names and texts of peers. It becomes text nodes and attribute
// values by the functions of elements.js, never HTML. The page asks nobody but its own server.

import { ACTS, Refused, ask } from "./ask.js";
import { CHARTS, Chart } from "./charts.js";
import { fill, link, list, make } from "./elements.js";
import { bytes, clock, count, duration, seconds } from "./formats.js";
import { open, startViewing } from "./view.js";

const EVERY = 2000; // ms between two questions
const SAMPLES = 300;
const LINES = 200;
const NO_ANSWER = 502; // of an answer: the hub that is asked for does not answer
const GONE = 410; // of an answer: the hub that is asked for is not on the bus

const find = (id) => document.getElementById(id);

// --- the overview ---

const state = {
  hub: "", // that is shown; "": the one that answers. Behind a load balancer that may be another one each time
  chosen: false, // whether the operator has chosen it
  own: "", // that has answered first
  name: "",
  uptime: 0,
  samples: [],
  line: 0,
  lines: [],
  place: -1, // of the sample whose values are shown; -1: the newest
  paused: false,
  ended: false,
  rounds: 0,
  hubs: [],
};
const charts = CHARTS.map((each) => new Chart(each, showAt));
find("charts").replaceChildren(...charts.map((chart) => chart.element));

function say(word, text) {
  const place = find("state");
  place.dataset.state = word;
  if (place.textContent !== text) place.textContent = text;
}

function forget() {
  Object.assign(state, { name: "", uptime: 0, samples: [], line: 0, lines: [], place: -1 });
}

async function look() {
  const hub = state.hub;
  const since = state.samples.at(-1)?.time ?? 0;
  const overview = await ask("overview", { hub, since, line: state.line }).catch((error) => leave(hub, error));
  if (hub !== state.hub) return; // another one was chosen meanwhile
  if (state.name && (overview.name !== state.name || overview.uptime < state.uptime)) {
    forget(); // it was started anew
    return;
  }
  if (!hub) state.own = overview.name;
  Object.assign(state, { hub: overview.name, name: overview.name, uptime: overview.uptime });
  showOverview(overview);
  if (state.rounds++ % 2 === 0) showHubs(await ask("hubs"));
  const paused = `${state.paused ? "Paused" : "Live"}${ACTS ? "" : ", read-only"}`;
  const draining = overview.draining ? ", draining" : "";
  say("live", `${paused}${draining}, up ${duration(overview.uptime)}`);
}

// A hub that has gone gives way to the one that answers next, and so does one that nobody has chosen
// and that cannot be asked: it may have been started anew under another name.
function leave(hub, error) {
  if (hub === state.hub && (error.status === GONE || (error.status === NO_ANSWER && !state.chosen))) {
    notice(`${error.message}. Shown is the hub that answers.`);
    Object.assign(state, { hub: "", chosen: false, rounds: 0 });
    forget();
  }
  throw error;
}

// A sentence that stays until the operator chooses a hub; none for "".
function notice(text) {
  find("notice").textContent = text;
  find("notice").hidden = !text;
}

async function run() {
  try {
    if (!document.hidden && !state.paused) await look();
  } catch (error) {
    if (error instanceof Refused) {
      state.ended = true;
      say("out", error.message);
      return;
    }
    const why = error.name === "TimeoutError" ? "no answer in time" : error.message;
    say("away", `Not connected, trying again: ${why}`);
  }
  setTimeout(run, EVERY);
}

function showOverview(overview) {
  state.samples = [...state.samples, ...overview.samples].slice(-SAMPLES);
  state.lines = [...overview.log, ...state.lines].slice(0, LINES);
  state.line = state.lines[0]?.number ?? 0;
  showCharts();
  showTable("slowest", overview.slowest, (each) => each.id, (each) => [
    link("client", each.id),
    link("user", each.user),
    `${count(each.queued_messages)} (${bytes(each.queued_bytes)})`,
    count(each.dropped),
  ]);
  showTable("rooms", overview.rooms, (each) => each.id, (each) => [link("room", each.id), count(each.size)]);
  showTable("users", overview.users, (each) => each.id, (each) => [link("user", each.id), count(each.size)]);
  find("rooms-count").textContent = count(overview.room_count);
  find("users-count").textContent = count(overview.user_count);
  const counts = [
    ["dropped", overview.dropped],
    ["refused connection or request", overview.rejected],
    ["limit met", overview.limited],
    ["closed", overview.closes],
  ].flatMap(([what, reasons]) => Object.entries(reasons).filter(([, times]) => times).map((each) => [what, ...each]));
  showTable("counts", counts, ([what, reason]) => `${what} ${reason}`, ([what, reason, times]) => [what, reason, count(times)]);
  showLog();
}

// Numbers stand in the last columns; a table without rows gives way to a sentence.
const NUMBERS = { slowest: 2, rooms: 1, users: 1, counts: 2, hubs: 2 };

function showTable(id, rows, keyOf, cellsOf) {
  fill(find(id).tBodies[0], rows, keyOf, cellsOf, NUMBERS[id]);
  find(id).hidden = rows.length === 0;
  find(`${id}-empty`).hidden = rows.length > 0;
}

function showCharts() {
  const slider = find("moment");
  const newest = Math.max(0, state.samples.length - 1);
  const place = state.place < 0 ? newest : Math.min(state.place, newest);
  slider.max = newest;
  slider.value = place;
  const time = state.samples[place]?.time;
  const text = state.place < 0 || time === undefined ? "now" : clock(time);
  find("moment-time").textContent = text;
  slider.setAttribute("aria-valuetext", text);
  for (const chart of charts) chart.show(state.samples, place, state.place >= 0);
}

function showAt(place) {
  state.place = place === null || place >= state.samples.length - 1 ? -1 : place;
  showCharts();
}

// Each hub puts itself first; the page keeps its order, whichever hub has answered.
function inOrder(one, other) {
  const later = (hub) => Number(hub.name !== state.own);
  return later(one) - later(other) || (one.name < other.name ? -1 : 1);
}

function showHubs(found) {
  const hubs = [...found].sort(inOrder);
  state.hubs = hubs;
  const rows = hubs.map((each) => ({ ...each, sample: each.sample ?? {} }));
  fill(find("hubs").tBodies[0], rows, (each) => each.name, hubCells, NUMBERS.hubs);
  const select = find("hub");
  const names = hubs.map((each) => each.name);
  const options = [...select.options].map((each) => each.value);
  const shown = state.hub || state.own;
  const differs = names.join(" ") !== options.join(" ") && document.activeElement !== select;
  if (differs || select.value !== shown) {
    const known = names.includes(shown) ? names : [...names, shown];
    select.replaceChildren(...known.map((name) => {
      const label = name === state.own ? `${name} (this one)` : name;
      return make("option", { value: name, selected: name === shown }, label);
    }));
  }
}

function hubCells(hub) {
  const { sample } = hub;
  if (hub.error) return [hub.name, hub.error, "", "", "", "", "", "", "", ""];
  const bus = { none: "alone", up: "bus up", down: "bus down" }[hub.bus] ?? hub.bus;
  const drops = ["drop_oldest", "drop_newest", "slow_consumer", "conn_closed", "refused"].reduce((sum, each) => sum + (sample[each] ?? 0), 0);
  return [
    hub.name,
    hub.draining ? `draining, ${bus}` : bus,
    count(hub.clients),
    count(hub.rooms),
    count(sample.messages_in),
    count(sample.messages_out),
    count(drops),
    seconds(sample.loop_lag),
    bytes(sample.memory),
    duration(hub.uptime),
  ];
}

const LEVELS = { all: [], warning: ["debug", "info"], error: ["debug", "info", "warning"] };

function showLog() {
  const hidden = LEVELS[find("levels").value];
  const lines = state.lines.filter((line) => !hidden.includes(line.level));
  list(find("log"), lines, (line) => `${line.number}`, (line) => [
    make("time", { dateTime: new Date(line.time * 1000).toISOString() }, clock(line.time)),
    make("span", { className: `level ${LEVELS.error.includes(line.level) ? line.level : "error"}` }, line.level),
    line.text,
    ...["client", "user", "room"].flatMap((kind) => {
      const id = line[kind === "room" ? "room" : `${kind}_id`];
      return id ? [" ", link(kind, id, `${kind} ${id}`)] : [];
    }),
  ]);
  find("log-empty").hidden = lines.length > 0;
}

// --- what the operator does to the page ---

find("search").addEventListener("submit", (event) => {
  event.preventDefault();
  open("find", find("text").value);
});
find("hub").addEventListener("change", (event) => {
  state.hub = event.target.value;
  state.chosen = state.hub !== state.own;
  notice("");
  forget();
  showCharts();
  say("waiting", "Loading");
});
find("levels").addEventListener("change", showLog);
find("moment").addEventListener("input", (event) => showAt(Number(event.target.value)));
find("pause").addEventListener("click", (event) => {
  state.paused = !state.paused;
  event.target.setAttribute("aria-pressed", state.paused);
  if (state.paused) say("waiting", "Paused");
});

const systemDark = matchMedia("(prefers-color-scheme: dark)");
function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : systemDark.matches;
}
function showTheme() {
  find("theme").textContent = isDark() ? "Light" : "Dark";
}
find("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  try {
    localStorage.setItem("wsc-console-theme", document.documentElement.dataset.theme);
  } catch {
    // A browser may keep nothing.
  }
  showTheme();
});
try {
  const kept = localStorage.getItem("wsc-console-theme");
  if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
} catch {
  // The same.
}
systemDark.addEventListener("change", showTheme);
showTheme();
showCharts();
startViewing(() => state.paused);
run();
