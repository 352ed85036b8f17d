/** Listeners of named events; a base of the client and of its rooms. */

/** Is called with each event of a name. */
export type Listener<T> = (event: T) => void;

/** Has listeners by the name of the event; the client calls them. */
export class Emitter<Events extends object> {
  #listeners = new Map<keyof Events, Listener<never>[]>();
  #failed: (error: unknown) => void;

  /** @param failed hears of what listeners throw; the other listeners are called all the same. */
  constructor(failed: (error: unknown) => void) {
    this.#failed = failed;
  }

  /** Has `listener` called at each event of this name; returns a function that ends it. */
  on<Name extends keyof Events>(name: Name, listener: Listener<Events[Name]>): () => void {
    this.#listeners.set(name, [...this.#of(name), listener]);
    return () => {
      this.#listeners.set(
        name,
        this.#of(name).filter((other) => other !== listener),
      );
    };
  }

  /** For the client: calls the listeners, and returns what the first one of them threw, in a list. */
  protected emit<Name extends keyof Events>(name: Name, event: Events[Name]): unknown[] {
    const errors: unknown[] = [];
    for (const listener of this.#of(name) as Listener<Events[Name]>[]) {
      try {
        listener(event);
      } catch (error) {
        errors.push(error);
        this.#failed(error);
      }
    }
    return errors;
  }

  /** For the client: whether anybody listens. */
  protected hasListeners(name: keyof Events): boolean {
    return this.#of(name).length > 0;
  }

  #of(name: keyof Events): Listener<never>[] {
    return this.#listeners.get(name) ?? [];
  }
}
