// A form for limits that says what each means, and bars of where they stand.

import { get } from "./api.js";
import { h, number, select, show, until, usd } from "./dom.js";
import { meterBar } from "./plot.js";

const KINDS = [["spend", "Spend (USD)"], ["tokens", "Tokens"], ["requests", "Requests"], ["concurrent", "At the same time"]];
const WINDOWS = {
  spend: ["day", "month", "total"],
  tokens: ["second", "minute", "hour", "day", "month", "total"],
  requests: ["second", "minute", "hour", "day", "month", "total"],
  concurrent: [],
};
const RATES = new Set(["second", "minute", "hour"]);

function explain(kind, window, amount) {
  if (!amount) return "Give an amount.";
  if (kind === "concurrent") return `At most ${amount} requests run at once; one more is told to try again in a second.`;
  const what = kind === "spend" ? `$${amount}` : `${number(Number(amount))} ${kind}`;
  if (RATES.has(window)) return `At most ${what} in any ${window} (a sliding window). One more gets a 429 that says when to try again.`;
  if (window === "total") return `${what} in all, ever. Then a 429 insufficient_quota, which SDKs do not repeat.`;
  return `${what} per calendar ${window}, UTC. Then a 429 insufficient_quota until the next ${window} begins.`;
}

export function limitsForm(texts) {
  const rows = h("div", {});
  const add = (text = "") => {
    const given = read(text);
    const kind = select(KINDS, given.kind);
    const amount = h("input", { value: given.amount, inputmode: "decimal", size: 10, "aria-label": "Amount" });
    const windowChoice = h("span", {});
    const model = h("input", { value: given.model, placeholder: "every model", size: 14, "aria-label": "Only for the model" });
    const hint = h("span", { class: "hint" });
    let window = given.window;
    const tell = () => show(hint, explain(kind.value, window, amount.value.trim()));
    const redraw = () => {
      const choices = WINDOWS[kind.value];
      if (!choices.includes(window)) window = choices[0] ?? "";
      const control = choices.length ? select(choices.map((c) => [c, c === "total" ? "in all" : `per ${c}`]), window, (value) => ((window = value), tell())) : null;
      control?.setAttribute("aria-label", "Window");
      show(windowChoice, control);
      tell();
    };
    kind.setAttribute("aria-label", "What is limited");
    kind.addEventListener("change", redraw);
    amount.addEventListener("input", tell);
    const row = h("div", { class: "row" }, kind, amount, windowChoice, model,
      h("button", { type: "button", "aria-label": "Remove this limit", onclick: () => row.remove() }, "Remove"), hint);
    row.text = () => {
      if (given.raw && !row.dataset.changed) return given.raw;
      const value = amount.value.trim();
      if (!value) return "";
      const suffix = model.value.trim() ? ` for ${model.value.trim()}` : "";
      if (kind.value === "concurrent") return `concurrent ${value}${suffix}`;
      const unit = kind.value === "spend" ? " USD" : "";
      return window === "total" ? `${kind.value} ${value}${unit} total${suffix}` : `${kind.value} ${value}${unit}/${window}${suffix}`;
    };
    row.addEventListener("input", () => (row.dataset.changed = "yes"));
    rows.append(row);
    redraw();
  };
  texts.forEach(add);
  if (!texts.length) add();
  return {
    element: h("fieldset", {}, h("legend", {}, "Limits"), rows, h("button", { type: "button", onclick: () => add() }, "Another limit")),
    text: () => [...rows.children].map((row) => row.text()).filter(Boolean).join("; "),
  };
}

function read(text) {
  const match = /^(spend|tokens|requests|concurrent) ([0-9.]+)(?: USD)?(?: ?\/ ?| per | )?(second|minute|hour|day|month|total)?(?: for (.+))?$/.exec(text);
  if (!match) return { kind: "spend", amount: "", window: "month", model: "", raw: text };
  return { kind: match[1], amount: match[2], window: match[3] ?? "", model: match[4] ?? "", raw: text };
}

// Asks the meter where limits stand, and draws them into an element.
export async function limitBars(element, path) {
  try {
    const { data } = await get(path);
    show(element, data.length ? data.map(bar) : h("p", { class: "empty" }, "Nothing binds it: no limit is set."));
  } catch (error) {
    show(element, h("p", { class: "error" }, error.message));
  }
}

function bar(limit) {
  return h("div", { class: "limit" },
    h("div", {}, h("strong", {}, limit.limit), " ", h("span", { class: "hint" }, `of the ${limit.scope}`)), standing(limit));
}

// What is spent, reserved and free of a limit, as a bar and in words.
export function standing(limit) {
  const say = limit.kind === "spend" ? usd : number;
  if (limit.standing === "unknown") {
    return h("p", { class: "hint" }, `Of ${say(limit.amount)}; what is spent is not known just now. It is asked for again in a moment.`);
  }
  return [
    meterBar(limit.amount, limit.spent, limit.reserved),
    h("p", { class: "hint" }, `${say(limit.spent)} spent, ${say(limit.reserved)} reserved, ${say(limit.free)} free of ${say(limit.amount)}`,
      limit.resets_at ? `; resets ${until(limit.resets_at)}` : ""),
  ];
}
