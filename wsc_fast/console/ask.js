// Questions to the hub: JSON, with the header that no other site's page can send.

const PATIENCE = 8000; // ms for one
// A page that was opened with a name and a password in its address may not fetch relative to it.
const base = new URL(`${document.documentElement.dataset.base}/`, location.origin + location.pathname);

// Whether the operator may act; the hub refuses the actions of one who may not.
export const ACTS = document.documentElement.dataset.acts === "true";

// No further question makes sense.
export class Refused extends Error {}

// An error has the status of the answer, where there was one.
export async function ask(path, query = {}, body = undefined) {
  const url = new URL(path, base);
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
  const headers = { "X-Console": "1" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(url, {
    method: body === undefined ? "GET" : "POST",
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store",
    signal: AbortSignal.timeout(PATIENCE),
  });
  if (answer.status === 401) throw new Refused("You are not logged in. Load the page again.");
  if (answer.status === 429) throw new Refused("Too many requests were refused. Wait a minute, and load the page again.");
  const type = answer.headers.get("Content-Type") ?? "";
  if (!type.startsWith("application/json")) throw new Error(`the answer is ${answer.status}`);
  const found = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(found.text || `the answer is ${answer.status}`), { status: answer.status });
  return found;
}
