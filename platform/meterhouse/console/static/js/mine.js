// A tenant's own page: limits, receipts, client tokens.

import { get, send } from "./api.js";
import { button, compact, duration, field, h, notify, number, pairs, roughUsd, show, table, usd } from "./dom.js";
import { limitBars } from "./limits.js";
import { plot } from "./plot.js";
import { openReceipt, receiptsCard } from "./receipt.js";

export async function minePage({ session, signal }) {
  const bars = h("div", {}, h("p", { class: "busy" }, "Asking the meter"));
  const draw = () => limitBars(bars, "/v1/limits");
  draw();
  const timer = setInterval(draw, 5000);
  signal.addEventListener("abort", () => clearInterval(timer));
  const usage = h("div", { class: "card" }, h("h2", {}, "Usage of the last 7 days"), h("p", { class: "busy" }, "Loading"));
  get("/v1/usage").then((found) => show(usage, usageParts(found)), (error) => show(usage, h("p", { class: "error" }, error.message)));
  const models = await get("/v1/models");
  const request = h("input", { placeholder: "req_…", size: 34, required: true });
  return [
    h("h1", {}, "My limits"),
    h("p", { class: "lead" }, "What binds this key, and where it stands."),
    h("div", { class: "card" }, bars), usage, receiptsCard(session),
    h("div", { class: "columns" },
      h("div", { class: "card" }, h("h2", {}, "Receipt"),
        h("p", {}, "The header x-request-id of an answer names it."),
        h("form", { class: "row", onsubmit: (event) => {
          event.preventDefault();
          openReceipt(session, request.value.trim());
        } }, field("Request", request), h("button", { class: "main" }, "Show"))),
      h("div", { class: "card" }, h("h2", {}, "Client token"),
        h("p", {}, "For a page in a browser: short-lived, bounded, and revoked with this key."), tokenForm()),
      h("div", { class: "card" }, h("h2", {}, "Models"),
        h("ul", { class: "long", tabindex: 0, "aria-label": "Models" }, models.data.map((model) => h("li", {}, h("code", {}, model.id)))))),
  ];
}

function usageParts({ breakdown: { total, lines }, series }) {
  const title = h("h2", {}, "Usage of the last 7 days");
  if (!total.requests && !total.refused) {
    return [title, h("p", { class: "empty" }, "Nothing was asked with this key yet. Try a model in the ", h("a", { href: "#/playground" }, "playground"), ".")];
  }
  const spent = series.lines.map((line) => ({ name: "spend", values: line.charge_nanos }));
  return [
    title,
    h("p", {}, h("span", { class: "figure" }, usd(total.charge_nanos)), " ",
      h("span", { class: "hint" }, `${compact(total.requests)} requests, ${compact(total.input_tokens + total.output_tokens)} tokens, ${compact(total.refused)} refused`)),
    plot({ times: series.times, lines: spent, format: roughUsd, label: "Spend of this key" }),
    table([
      { title: "Model", cell: (line) => line.name || h("span", { class: "hint" }, "not listed") },
      { title: "Requests", number: true, cell: (line) => number(line.requests) },
      { title: "Refused", number: true, cell: (line) => number(line.refused) },
      { title: "In", number: true, cell: (line) => number(line.input_tokens) },
      { title: "Out", number: true, cell: (line) => number(line.output_tokens) },
      { title: "First token p50", number: true, cell: (line) => duration(line.first_token.p50_ms) },
      { title: "Spend", number: true, cell: (line) => usd(line.charge_nanos) },
    ], lines),
  ];
}

function tokenForm() {
  const usdCap = h("input", { inputmode: "decimal", value: "0.10" });
  const minutes = h("input", { type: "number", min: 1, max: 60, value: 15 });
  const origin = h("input", { type: "url", placeholder: "https://app.example.com" });
  const result = h("div", {});
  return h("div", {}, h("div", { class: "row" }, field("At most, USD", usdCap), field("Minutes", minutes), field("Origin", origin),
    button("Make a token", async () => {
      const made = await send("POST", "/v1/client_tokens", {
        max_spend_usd: usdCap.value.trim(), expires_in_seconds: Number(minutes.value) * 60, origins: origin.value ? [origin.value.trim()] : [],
      });
      show(result, h("pre", {}, made.value), button("Copy", async () => {
        await navigator.clipboard.writeText(made.value);
        notify("Copied.");
      }), pairs([["Ends", new Date(made.expires_at * 1000).toLocaleString()], ["At most", usd(made.max_spend_nanos)]]));
    }, "main")), result);
}
