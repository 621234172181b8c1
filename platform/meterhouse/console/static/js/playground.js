// Streams an answer, and shows tokens, tokens/s and cost as they grow.

import { events, get } from "./api.js";
import { duration, field, h, notify, number, pairs, show, usd } from "./dom.js";

const RECEIPT_TRIES = 100;
const RECEIPT_WAIT_MS = 300;
const LONGEST_ANSWER_MS = 600000;
const LISTEN_MS = 1000;

export async function playgroundPage({ signal }) {
  const models = (await get("/v1/models")).data;
  const model = h("input", { list: "models", value: models[0]?.id ?? "", required: true, size: 28 });
  const prompt = h("textarea", { "aria-label": "Message", required: true }, "Say something about meters.");
  const most = h("input", { type: "number", min: 1, max: 100000, value: 300, required: true });
  const answer = h("div", { class: "answer", "aria-live": "polite" }, h("p", { class: "empty" }, "The answer appears here as it is written."));
  const figures = h("div", {});
  const go = h("button", { class: "main" }, "Send");
  const stopper = h("button", { type: "button", disabled: true }, "Stop");
  let running = null;
  stopper.addEventListener("click", () => running?.abort());
  signal.addEventListener("abort", () => running?.abort());
  const form = h("form", { onsubmit: async (event) => {
    event.preventDefault();
    running = new AbortController();
    go.disabled = true;
    stopper.disabled = false;
    try {
      const body = request(model.value, prompt.value, Number(most.value));
      await run({ body, answer, figures, signal: running.signal, isLeft: () => signal.aborted });
    } catch (error) {
      if (!signal.aborted) notify(error.message, true);
    } finally {
      running.abort();
      go.disabled = false;
      stopper.disabled = true;
    }
  } }, h("div", { class: "row" }, field("Model", model), h("datalist", { id: "models" }, models.map((m) => h("option", { value: m.id }))), field("At most tokens", most)), prompt, h("div", { class: "row" }, go, stopper));
  return [h("h1", {}, "Playground"), h("p", { class: "lead" }, "The same endpoint as the SDK's, with this key: what you ask is metered and charged."),
    h("div", { class: "columns" }, h("div", { class: "card" }, form), h("div", { class: "card" }, figures, answer))];
}

const request = (model, text, most) => ({
  model, stream: true, stream_options: { include_usage: true }, max_completion_tokens: most,
  messages: [{ role: "user", content: text }],
});

async function run({ body, answer, figures, signal, isLeft }) {
  const seen = { began: performance.now(), first: null, last: null, pieces: 0, usage: null, told: null, charged: null };
  let id = null;
  const draw = () => show(figures, pairs(describe(seen)));
  show(answer);
  draw();
  // The meter tells each second what an end now would be charged.
  const watching = watch(signal, (event) => {
    if (event.request_id !== id || event.charge_nanos === undefined || event.type === "request.finished") return;
    seen.told = { nanos: event.charge_nanos, tokens: event.output_tokens };
    draw();
  });
  try {
    await Promise.race([watching.begun, new Promise((resolve) => setTimeout(resolve, LISTEN_MS))]);
    for await (const data of events("/v1/chat/completions", { method: "POST", body, signal, begun: (found) => (id = found) })) {
      if (data === "[DONE]") break;
      take(seen, JSON.parse(data), answer);
      draw();
    }
  } catch (error) {
    // Who stops an answer pays for what came: the receipt says how much.
    if (error.name !== "AbortError") throw error;
    if (isLeft() || !id) return;
    answer.append(h("p", { class: "hint" }, "You stopped it here."));
  }
  seen.charged = await charge(id);
  draw();
}

function take(seen, event, answer) {
  if (event.error) throw new Error(event.error.message);
  seen.usage = event.usage ?? seen.usage;
  const delta = event.choices?.[0]?.delta ?? {};
  const piece = delta.content ?? delta.reasoning_content ?? "";
  if (!piece) return;
  seen.last = performance.now();
  seen.first ??= seen.last;
  seen.pieces += 1;
  answer.append(piece);
}

function describe(seen) {
  const { began, first, last, usage, charged } = seen;
  const seconds = first === null ? 0 : (last - first) / 1000;
  const tokens = usage?.completion_tokens ?? seen.pieces;
  return [
    ["Tokens", `${usage ? "" : "about "}${number(tokens)}`],
    ["Tokens/s", seconds > 0 ? (tokens / seconds).toFixed(1) : "–"],
    ["First token", first === null ? "waiting" : duration(first - began)],
    ["Cost", h("span", { id: "cost" }, charged === null ? estimate(seen, tokens) : usd(charged))],
  ];
}

// Between two words of the meter the cost grows with the tokens.
function estimate({ told }, tokens) {
  if (told === null) return "the meter tells in a second";
  const nanos = told.tokens ? Math.max(told.nanos, Math.round((told.nanos * tokens) / told.tokens)) : told.nanos;
  return `about ${usd(nanos)}, until it is settled`;
}

// Listens to this key's requests; `begun` is over once it does, or cannot: the page goes on without it.
function watch(signal, take) {
  let begin = () => {};
  const begun = new Promise((resolve) => (begin = resolve));
  const listen = async () => {
    const ending = AbortSignal.any([signal, AbortSignal.timeout(LONGEST_ANSWER_MS)]);
    for await (const data of events("/v1/live", { signal: ending, begun: begin })) take(JSON.parse(data));
  };
  listen().catch(() => {}).finally(begin);
  return { begun };
}

// The receipt is written a moment after the end; a worker that did not serve the request may know nothing of it till then.
async function charge(id) {
  for (let tries = 0; ; tries += 1) {
    try {
      return (await get(`/v1/receipts/${encodeURIComponent(id)}`)).charge_nanos;
    } catch (error) {
      if (error.status !== 404 || tries > RECEIPT_TRIES) throw error;
      await new Promise((resolve) => setTimeout(resolve, RECEIPT_WAIT_MS));
    }
  }
}
