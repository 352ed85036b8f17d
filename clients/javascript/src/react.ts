/** Hooks for React 18 and newer: the entry point `wsc-client/react`. */

import { useEffect, useMemo, useRef, useState, useSyncExternalStore } from "react";
import { Client } from "./index.js";
import type { Message, Options, Refusal, Room, State } from "./index.js";

/** A client of any messages. */
export type AnyClient = Client<any, any>;

/** How many components use a room of a client; the last one that goes leaves it. */
const uses = new WeakMap<object, Map<string, number>>();

function use(client: object, room: string, change: 1 | -1): number {
  const counts = uses.get(client) ?? new Map<string, number>();
  uses.set(client, counts);
  const count = (counts.get(room) ?? 0) + change;
  counts.set(room, count);
  return count;
}

/** The newest value of what a component gives, for listeners that outlast a rendering. */
function useNewest<T>(value: T): { current: T } {
  const newest = useRef(value);
  useEffect(() => {
    newest.current = value;
  });
  return newest;
}

/**
 * A client that is connected as long as the component is there.
 *
 * @param url of the hub; another url is another client.
 * @param options of the first rendering with this url.
 */
export function useHub<In = unknown, Out = unknown>(
  url: string,
  options?: Options,
): { client: Client<In, Out>; state: State } {
  const client = useMemo(() => new Client<In, Out>(url, options), [url]);
  useEffect(() => {
    client.connect();
    return () => client.close();
  }, [client]);
  const state = useSyncExternalStore<State>(
    (changed) => client.on("state", changed),
    () => client.state,
    () => "closed",
  );
  return { client, state };
}

/** The options of `useRoom`. */
export interface RoomOptions<T> {
  /** How many of the newest messages are kept; 100 unless set. */
  keep?: number;
  /** False where the application joins the client by itself. */
  join?: boolean;
  /** Called with each message, beside the list that is rendered. */
  onMessage?: (message: Message<T>) => void;
  /** The state of the room has to be loaded: at first, and after a loss. */
  onLoad?: (room: string, why: "first" | "gap") => void;
}

/** A room that the client is in as long as a component is there which uses it, and its messages. */
export function useRoom<T = unknown>(
  client: AnyClient,
  name: string,
  options: RoomOptions<T> = {},
): { messages: Message<T>[]; joined: boolean; refused: Refusal | undefined } {
  const [messages, setMessages] = useState<Message<T>[]>([]);
  const [joined, setJoined] = useState(false);
  const [refused, setRefused] = useState<Refusal>();
  const newest = useNewest(options);
  const { join } = options;
  useEffect(() => {
    const room: Room<T> = client.room(name, { join: join !== false });
    use(client, name, 1);
    setMessages([]);
    setJoined(room.joined);
    setRefused(undefined);
    const load = (why: "first" | "gap") => () => newest.current.onLoad?.(name, why);
    const ends = [
      room.on("message", (message) => {
        const { keep = 100, onMessage } = newest.current;
        setMessages((before) => [...before, message].slice(-keep));
        onMessage?.(message);
      }),
      room.on("joined", () => setJoined(true)),
      room.on("refused", ({ error }) => setRefused(error)),
      room.on("first", load("first")),
      room.on("gap", load("gap")),
      client.on("state", () => setJoined(room.joined)),
    ];
    return () => {
      for (const end of ends) end();
      use(client, name, -1);
      // A component that is made anew in the same turn, as in strict mode, does not leave the room.
      setTimeout(() => {
        if (uses.get(client)?.get(name) === 0) room.leave();
      });
    };
  }, [client, name, join, newest]);
  return { messages, joined, refused };
}

/** What the application tells of who is in a room: all of them, or who has come and gone. */
export interface PresenceMessage {
  /** Marks it. */
  type: "presence";
  /** The room that it tells of. */
  room: string;
  /** All users who are in the room. */
  users?: string[];
  /** Users who have come. */
  joined?: string[];
  /** Users who have gone. */
  left?: string[];
}

function isPresence(data: unknown, room: string): data is PresenceMessage {
  const { type, room: of } = (data ?? {}) as Partial<PresenceMessage>;
  return type === "presence" && of === room;
}

/** The users who are in a room, sorted, by the messages that the application sends of them. */
export function usePresence(client: AnyClient, room: string): string[] {
  const [users, setUsers] = useState<string[]>([]);
  useEffect(() => {
    setUsers([]);
    return client.on("message", ({ data }: Message) => {
      if (!isPresence(data, room)) return;
      const { users: all, joined = [], left = [] } = data;
      setUsers((before) => {
        const now = new Set(all ?? before);
        for (const user of joined) now.add(user);
        for (const user of left) now.delete(user);
        return [...now].sort();
      });
    });
  }, [client, room]);
  return users;
}
