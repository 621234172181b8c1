// Streams an answer, and shows tokens, tokens/s and cost as they grow.

import { events, get } from "./api.js";
import { duration, field, h, notify, number, pairs, show, usd } from "./dom.js";

export async function playgroundPage({ signal }) {
  const models = (await get("/v1/models")).data;
  const model = h("input", { list: "models", value: models[0]?.id ?? "", required: true, size: 28 });
  const prompt = h("textarea", { "aria-label": "Message" }, "Say something about meters.");
  const most = h("input", { type: "number", min: 1, max: 100000, value: 300 });
  const answer = h("div", { class: "answer", "aria-live": "polite" });
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
      await run({ model: model.value, text: prompt.value, most: Number(most.value), answer, figures, signal: running.signal });
    } catch (error) {
      if (error.name !== "AbortError") notify(error.message, true);
    } finally {
      go.disabled = false;
      stopper.disabled = true;
    }
  } }, h("div", { class: "row" }, field("Model", model), h("datalist", { id: "models" }, models.map((m) => h("option", { value: m.id }))), field("At most tokens", most)), prompt, h("div", { class: "row" }, go, stopper));
  return [h("h1", {}, "Playground"), h("p", { class: "lead" }, "The same endpoint as the SDK's, with this key: what you ask is metered and charged."),
    h("div", { class: "columns" }, h("div", { class: "card" }, form), h("div", { class: "card" }, figures, answer))];
}

async function run({ model, text, most, answer, figures, signal }) {
  const body = {
    model, stream: true, stream_options: { include_usage: true }, max_completion_tokens: most,
    messages: [{ role: "user", content: text }],
  };
  const began = performance.now();
  let first = null;
  let pieces = 0;
  let usage = null;
  let id = null;
  let charged = null;
  let live = null;
  show(answer);
  const draw = () => {
    const seconds = first === null ? 0 : (performance.now() - first) / 1000;
    const tokens = usage?.completion_tokens ?? pieces;
    show(figures, pairs([
      ["Tokens", `${usage ? "" : "about "}${number(tokens)}`],
      ["Tokens/s", seconds > 0 ? (tokens / seconds).toFixed(1) : "–"],
      ["First token", first === null ? "waiting" : duration(first - began)],
      ["Cost", h("span", { id: "cost" }, charged === null ? cost(live) : usd(charged))],
    ]));
  };
  draw();
  watch(signal, (event) => event.request_id === id && (live = { ...live, ...event }));
  for await (const data of events("/v1/chat/completions", { method: "POST", body, signal, begun: (found) => (id = found) })) {
    if (data === "[DONE]") break;
    const event = JSON.parse(data);
    if (event.error) throw new Error(event.error.message);
    usage = event.usage ?? usage;
    const delta = event.choices?.[0]?.delta ?? {};
    const piece = delta.content ?? delta.reasoning_content ?? "";
    if (piece) {
      first ??= performance.now();
      pieces += 1;
      answer.append(piece);
    }
    draw();
  }
  draw();
  charged = (await receipt(id)).charge_nanos;
  draw();
}

// What the meter says while it runs; the page goes on without it.
async function watch(signal, take) {
  const ending = AbortSignal.any([signal, AbortSignal.timeout(120000)]);
  try {
    for await (const data of events("/v1/live", { signal: ending })) {
      const event = JSON.parse(data);
      take(event);
      if (event.type === "request.finished") return;
    }
  } catch {
    // A stream of events that breaks takes nothing away from the answer.
  }
}

const cost = (running) => (running?.charge_nanos === undefined ? "when it has ended" : `about ${usd(running.charge_nanos)}`);

// The receipt is written a moment after the end.
async function receipt(id) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await get(`/v1/receipts/${encodeURIComponent(id)}`);
    } catch (error) {
      if (error.code !== "receipt_pending" || tries > 20) throw error;
      await new Promise((resolve) => setTimeout(resolve, 300));
    }
  }
}
