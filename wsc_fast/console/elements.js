// Elements, made of texts: nothing here reads HTML.

export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, attributes);
  made.append(...children);
  return made;
}

export function link(kind, id, text = id) {
  // With the path, so that it is not taken for a link that skips to a part of the page.
  return make("a", { href: `${location.pathname}#${kind}=${encodeURIComponent(id)}` }, text);
}

export function button(text, className = "") {
  return make("button", { className }, text);
}

export function field(text, input, className = "") {
  return make("label", { className: `field ${className}` }, text, input);
}

export function pairs(entries) {
  return make("dl", {}, ...entries.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

// Fills an element with one child for each item, and keeps the focus on the link that had it. Does
// nothing where the items are those of before, so that a screen reader is not disturbed.
function replaced(parent, items, keyOf, childOf) {
  const text = JSON.stringify(items);
  if (parent.shownItems === text) return;
  parent.shownItems = text;
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  const key = focused?.closest("[data-key]")?.dataset.key;
  const href = focused?.getAttribute("href");
  parent.replaceChildren(
    ...items.map((item) => {
      const child = childOf(item);
      child.dataset.key = keyOf(item);
      return child;
    }),
  );
  if (key === undefined) return;
  const place = [...parent.children].find((each) => each.dataset.key === key) ?? parent;
  const wanted = [...place.querySelectorAll("a")];
  (wanted.find((each) => each.getAttribute("href") === href) ?? wanted[0])?.focus({ preventScroll: true });
}

export function fill(body, rows, keyOf, cellsOf, numbers) {
  replaced(body, rows, keyOf, (row) =>
    make("tr", {}, ...cellsOf(row).map((cell, place) => make("td", { className: place >= numbers ? "number" : "" }, cell))),
  );
}

export function list(place, items, keyOf, childrenOf) {
  replaced(place, items, keyOf, (item) => make("li", {}, ...childrenOf(item)));
}
