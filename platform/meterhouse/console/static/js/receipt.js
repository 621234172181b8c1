// The receipt of one request: attempts, price, charge, exactness, seal.

import { get } from "./api.js";
import { dialog, duration, h, moment, notify, number, pairs, table, usd } from "./dom.js";

export async function openReceipt(session, requestId) {
  try {
    const path = session.role === "tenant" ? "/v1/receipts/" : "/admin/ledger/receipts/";
    const receipt = await get(`${path}${encodeURIComponent(requestId)}`);
    dialog("Receipt", ...receiptParts(receipt, session.trace_url));
  } catch (error) {
    notify(error.code === "receipt_pending" ? "The receipt is written when the request is over. Ask again in a second." : error.message, true);
  }
}

function receiptParts(receipt, traceUrl) {
  const last = receipt.attempts.at(-1) ?? {};
  const used = (attempt) => attempt.usage ?? attempt;
  return [
    pairs([
      ["Request", h("code", {}, receipt.id)],
      ["Model", receipt.model],
      ["Project", h("code", {}, receipt.project_id)],
      ["Key", h("code", {}, receipt.key_id ?? last.key_id)],
      ["Begun", moment((receipt.admitted_at ?? last.admitted_at_ms) / 1000)],
      ["Charged", usd(receipt.charge_nanos)],
      ["Trace", last.trace_id && trace(last.trace_id, traceUrl)],
    ]),
    table([
      { title: "#", cell: (a) => a.attempt },
      { title: "Provider", cell: (a) => a.provider || "–" },
      { title: "Outcome", cell: (a) => (a.error_code ? `${a.outcome} (${a.error_code})` : a.outcome) },
      { title: "Exactness", cell: (a) => a.exactness },
      { title: "In", number: true, cell: (a) => number(used(a).input_tokens) },
      { title: "Out", number: true, cell: (a) => number(used(a).output_tokens) },
      { title: "First token", number: true, cell: (a) => duration(a.time_to_first_token_ms) },
      { title: "Time", number: true, cell: (a) => duration(a.duration_ms) },
      { title: "Price", cell: (a) => (a.price_id ? h("code", {}, a.price_id) : "none") },
      { title: "Seal", cell: (a) => seal(a.seal) },
      { title: "Charge", number: true, cell: (a) => usd(a.charge_nanos) },
    ], receipt.attempts),
  ];
}

// A link where the console was told of a page for traces; the id is hexadecimal.
function trace(id, url) {
  const text = h("code", {}, id);
  return url ? h("a", { href: url.replaceAll("{trace_id}", encodeURIComponent(id)), target: "_blank", rel: "noopener noreferrer" }, text) : text;
}

function seal(found) {
  if (found === undefined) return "–";
  if (!found) return "not yet";
  const hash = String(found.hash ?? found);
  return h("code", { title: hash }, found.number ? `${found.number}: ${hash.slice(0, 10)}` : hash.slice(0, 12));
}
