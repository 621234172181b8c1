// Makes elements, and says things in words. Text from outside only ever becomes a text node.

const SVG = "http://www.w3.org/2000/svg";
const SVG_NAMES = new Set(["svg", "g", "path", "line", "rect", "text", "circle", "polyline"]);

export function h(name, properties = {}, ...children) {
  const element = SVG_NAMES.has(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

export function show(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

export function notify(text, isBad = false) {
  const notice = h("div", { class: isBad ? "notice bad" : "notice", role: isBad ? "alert" : null }, text);
  document.getElementById("notices").append(notice);
  setTimeout(() => notice.remove(), isBad ? 9000 : 4000);
}

// A table: columns are {title, cell(item), number?}.
export function table(columns, items, { empty = "There is nothing here yet.", open = null, id = null } = {}) {
  if (!items.length) return h("p", { class: "empty" }, empty);
  const head = h("tr", {}, columns.map((c) => h("th", { scope: "col", class: c.number ? "number" : null }, c.title)));
  const rows = items.map((item) => {
    const row = h("tr", {}, columns.map((c) => h("td", { class: c.number ? "number" : null }, c.cell(item))));
    if (id) row.dataset.id = id(item);
    if (open) {
      row.classList.add("open");
      row.tabIndex = 0;
      row.addEventListener("click", (event) => event.target.closest("button, a") || open(item));
      row.addEventListener("keydown", (event) => event.key === "Enter" && event.target === row && open(item));
    }
    return row;
  });
  return h("div", { class: "scroll" }, h("table", {}, h("thead", {}, head), h("tbody", {}, rows)));
}

let hints = 0;

export function field(label, control, hint = null) {
  if (!hint) return h("label", {}, label, control);
  const id = `hint-${(hints += 1)}`;
  control.setAttribute("aria-describedby", id);
  return h("div", { class: "field" }, h("label", {}, label, control), h("span", { class: "hint", id }, hint));
}

export function select(options, value, onchange = null) {
  const control = h("select", { onchange: onchange && ((event) => onchange(event.target.value)) });
  for (const [key, text] of options) control.append(h("option", { value: key, selected: key === value }, text));
  return control;
}

export function button(text, onclick, kind = null) {
  const made = h("button", { type: "button", class: kind }, text);
  made.addEventListener("click", async () => {
    made.disabled = true;
    try {
      await onclick();
    } catch (error) {
      notify(error.message, true);
    } finally {
      made.disabled = false;
    }
  });
  return made;
}

export function dialog(title, ...children) {
  const box = h("dialog", { "aria-label": title }, h("h2", {}, title), children);
  box.append(h("div", { class: "row" }, h("button", { type: "button", onclick: () => box.close() }, "Close")));
  box.addEventListener("close", () => box.remove());
  document.body.append(box);
  box.showModal();
  return box;
}

// Asks before what cannot be undone; resolves to whether it was wanted.
export function confirm(title, text, action, otherwise = "Keep it") {
  return new Promise((resolve) => {
    let isWanted = false;
    const box = h("dialog", { "aria-label": title }, h("h2", {}, title), h("p", {}, text));
    const want = () => {
      isWanted = true;
      box.close();
    };
    box.append(
      h("div", { class: "row" },
        h("button", { type: "button", class: "bad", onclick: want }, action),
        h("button", { type: "button", autofocus: true, onclick: () => box.close() }, otherwise)),
    );
    box.addEventListener("close", () => {
      box.remove();
      resolve(isWanted);
    });
    document.body.append(box);
    box.showModal();
  });
}

export function pairs(entries) {
  return h("dl", {}, entries.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

export function tag(text, kind = "") {
  return h("span", { class: `tag ${kind}` }, text);
}

// --- words

const count = new Intl.NumberFormat("en-US");
const short = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 });

export const number = (value) => (value === null || value === undefined ? "–" : count.format(value));
export const compact = (value) => (Math.abs(value) < 10000 ? count.format(Math.round(value * 100) / 100) : short.format(value));

// Nanos of USD, in full: no digit that is charged is hidden.
export function usd(nanos) {
  if (nanos === null || nanos === undefined) return "–";
  const value = BigInt(nanos);
  const size = value < 0n ? -value : value;
  const digits = (size % 1000000000n).toString().padStart(9, "0").replace(/0+$/, "").padEnd(2, "0");
  return `${value < 0n ? "-" : ""}$${count.format(size / 1000000000n)}.${digits}`;
}

export const roughUsd = (nanos) => {
  const dollars = Number(nanos) / 1e9;
  return `$${dollars !== 0 && Math.abs(dollars) < 0.1 ? dollars.toPrecision(2) : count.format(Math.round(dollars * 100) / 100)}`;
};

export const moment = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString() : "–");
export const duration = (ms) => (ms === null || ms === undefined ? "–" : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

export function until(seconds) {
  const left = seconds - Date.now() / 1000;
  if (left <= 0) return "now";
  for (const [unit, size] of [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]]) {
    const amount = Math.floor(left / size);
    if (amount >= 1) return `in ${amount} ${unit}${amount === 1 ? "" : "s"}`;
  }
  return "now";
}
