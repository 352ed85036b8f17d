// Numbers, bytes and times as texts.

const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const UNKNOWN = "–";

export function count(value) {
  if (value === null || value === undefined) return UNKNOWN;
  if (value > 0 && value < 0.05) return "<0.1";
  return COMPACT.format(value);
}

export function bytes(value) {
  if (value === null || value === undefined) return UNKNOWN;
  let unit = 0;
  while (value >= 1000 && unit < 4) {
    value /= 1024;
    unit++;
  }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}

export function seconds(value) {
  if (value === null || value === undefined) return UNKNOWN;
  if (value === 0) return "0 s";
  if (value < 1e-3) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${(value * 1e3).toPrecision(2)} ms`.replace(/e\+\d+ /, " ");
  return `${value.toFixed(1)} s`;
}

export function duration(value) {
  if (value < 60) return `${Math.round(value)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min`;
  if (value < 86400) return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
  return `${Math.floor(value / 86400)} d ${Math.floor((value % 86400) / 3600)} h`;
}

export function clock(time) {
  return new Date(time * 1000).toLocaleTimeString("en-GB");
}
