/** The client of wsc_fast hubs. */

export { Client, Room, connect } from "./client.js";
export type { Listener } from "./events.js";
export * from "./types.js";
