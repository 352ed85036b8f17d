/** The client of wsc_fast hubs. */

export { Client, Room, connect } from "./client.js";
export { Refusal, SendError } from "./types.js";
export type {
  ClientEvents,
  ClientStorage,
  Failure,
  HubMessage,
  Message,
  Options,
  RoomEvents,
  Socket,
  SocketClass,
  State,
  StateEvent,
  Token,
} from "./types.js";
