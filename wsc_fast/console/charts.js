// The charts: lines of SVG over the last ten minutes, with their values as text.

import { bytes, count, seconds } from "./formats.js";
import { make } from "./elements.js";

const WINDOW = 600; // seconds
const WIDTH = 300;
const HEIGHT = 80;
const GAP = 7; // seconds between two samples after which a line is cut

// Title, format of the values, and the series: field of a sample, and its name.
export const CHARTS = [
  ["Connections", count, [["connections", "open"]]],
  ["Messages a second", count, [["messages_in", "in"], ["messages_out", "out"]]],
  ["Deliveries a second", count, [["deliveries", "into outboxes"]]],
  ["Bytes a second", bytes, [["bytes_in", "in"], ["bytes_out", "out"]]],
  ["Drops a second", count, [
    ["drop_oldest", "oldest"], ["drop_newest", "newest"], ["slow_consumer", "slow client"],
    ["conn_closed", "closed"], ["refused", "refused"],
  ]],
  ["Refusals a second", count, [["rejected", "connections and requests"]]],
  ["Sends of a flush", count, [["flush_clients", "mean"]]],
  ["Loop lag and flush time", seconds, [["loop_lag", "lag, longest"], ["flush_seconds", "flush, 99 %"]]],
  ["Waiting in outboxes", bytes, [["queued_bytes", "all clients"]]],
  ["Memory of the process", bytes, [["memory", "resident"]]],
  ["Bus, there and back", seconds, [["bus_round_trip", "a question"]]],
].map(([title, format, series]) => ({ title, format, series }));

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

export class Chart {
  // `choose(place)` hears which sample the pointer is over; null once it has left.
  constructor({ title, format, series }, choose) {
    Object.assign(this, { title, format, series, samples: [] });
    this.plot = svg("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this.values = series.map(() => make("b"));
    this.top = make("span");
    this.element = make(
      "figure",
      {},
      make("figcaption", {}, make("b", {}, title)),
      make("ul", {}, ...series.map(([, name], place) => make("li", { className: `s${place}` }, `${name} `, this.values[place]))),
      this.plot,
      make("div", { className: "scale" }, this.top, make("span", {}, "10 min")),
    );
    this.plot.addEventListener("pointermove", (event) => choose(this.placeAt(event)));
    this.plot.addEventListener("pointerleave", () => choose(null));
  }

  placeAt(event) {
    const box = this.plot.getBoundingClientRect();
    const newest = this.samples.at(-1)?.time ?? 0;
    const time = newest - WINDOW * (1 - (event.clientX - box.left) / box.width);
    const place = this.samples.findIndex((each) => each.time >= time);
    return place < 0 ? null : place;
  }

  // Shows samples, and the values of the one at a place.
  show(samples, place, marked) {
    this.samples = samples;
    const fields = this.series.map(([name]) => name);
    const known = samples.flatMap((each) => fields.map((name) => each[name] ?? 0));
    const most = Math.max(...known, 0);
    const top = most > 0 ? most * 1.1 : 1;
    const newest = samples.at(-1)?.time ?? 0;
    const x = (time) => (WIDTH * (1 - (newest - time) / WINDOW)).toFixed(1);
    const y = (value) => (HEIGHT - 2 - ((HEIGHT - 6) * value) / top).toFixed(1);
    const lines = [svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: y(most / 2), y2: y(most / 2) })];
    fields.forEach((name, number) => {
      for (const run of runs(samples, name)) {
        const points = run.map((each) => `${x(each.time)},${y(each[name])}`).join(" ");
        lines.push(svg("polyline", { class: `s${number}`, points }));
      }
    });
    if (marked && samples[place]) {
      const at = x(samples[place].time);
      lines.push(svg("line", { class: "cursor", x1: at, x2: at, y1: 0, y2: HEIGHT }));
    }
    this.plot.replaceChildren(...lines);
    fields.forEach((name, number) => {
      this.values[number].textContent = this.format(samples[place]?.[name]);
    });
    this.top.textContent = `highest ${this.format(most)}`;
    this.plot.setAttribute("aria-label", this.described(samples));
  }

  described(samples) {
    const parts = this.series.map(([field, name]) => {
      const values = samples.map((each) => each[field]).filter((each) => each !== null && each !== undefined);
      if (values.length === 0) return `${name}: not known`;
      return `${name}: ${this.format(values.at(-1))} now, ${this.format(Math.min(...values))} to ${this.format(Math.max(...values))}`;
    });
    return `${this.title} in the last ten minutes. ${parts.join(". ")}.`;
  }
}

// The parts of a series without a gap; one point is drawn twice, so that it is seen.
function runs(samples, name) {
  const found = [];
  let run = [];
  for (const each of samples) {
    const apart = run.length > 0 && each.time - run.at(-1).time > GAP;
    if (apart || each[name] === null || each[name] === undefined) {
      if (run.length) found.push(run);
      run = [];
    }
    if (each[name] !== null && each[name] !== undefined) run.push(each);
  }
  if (run.length) found.push(run);
  return found.map((each) => (each.length === 1 ? [each[0], each[0]] : each));
}
