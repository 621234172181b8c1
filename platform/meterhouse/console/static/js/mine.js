// A tenant's own page: limits, receipts, client tokens.

import { get, send } from "./api.js";
import { button, field, h, notify, pairs, show, usd } from "./dom.js";
import { limitBars } from "./limits.js";
import { openReceipt } from "./receipt.js";

export async function minePage({ session, signal }) {
  const bars = h("div", {}, h("p", { class: "busy" }, "Asking the meter"));
  const draw = () => limitBars(bars, "/v1/limits");
  draw();
  const timer = setInterval(draw, 5000);
  signal.addEventListener("abort", () => clearInterval(timer));
  const models = await get("/v1/models");
  const request = h("input", { placeholder: "req_…", size: 34, required: true });
  return [
    h("h1", {}, "My limits"),
    h("p", { class: "lead" }, "What binds this key, and where it stands."),
    h("div", { class: "card" }, bars),
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
        h("ul", {}, models.data.map((model) => h("li", {}, h("code", {}, model.id)))))),
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
