// The receipt of one request: attempts, price, charge, exactness, seal.

import { get } from "./api.js";
import { dialog, duration, h, moment, notify, number, pairs, table, usd } from "./dom.js";

export async function openReceipt(session, requestId) {
  try {
    const path = session.kind === "admin" ? "/admin/ledger/receipts/" : "/v1/receipts/";
    const receipt = await get(`${path}${encodeURIComponent(requestId)}`);
    dialog("Receipt", ...receiptParts(receipt));
  } catch (error) {
    notify(error.code === "receipt_pending" ? "The receipt is written when the request is over. Ask again in a second." : error.message, true);
  }
}

export function receiptParts(receipt) {
  return [
    pairs([
      ["Request", h("code", {}, receipt.id)],
      ["Model", receipt.model],
      ["Project", h("code", {}, receipt.project_id)],
      ["Key", h("code", {}, receipt.key_id)],
      ["Begun", moment(receipt.admitted_at / 1000)],
      ["Charged", usd(receipt.charge_nanos)],
      ["Trace", receipt.trace_id && h("code", {}, receipt.trace_id)],
    ]),
    table([
      { title: "#", cell: (a) => a.attempt },
      { title: "Provider", cell: (a) => a.provider || "–" },
      { title: "Outcome", cell: (a) => a.outcome },
      { title: "Exactness", cell: (a) => a.exactness },
      { title: "In", number: true, cell: (a) => number(a.input_tokens) },
      { title: "Out", number: true, cell: (a) => number(a.output_tokens) },
      { title: "First token", number: true, cell: (a) => duration(a.time_to_first_token_ms) },
      { title: "Time", number: true, cell: (a) => duration(a.duration_ms) },
      { title: "Price", cell: (a) => (a.price_id ? h("code", {}, a.price_id) : "none") },
      { title: "Seal", cell: (a) => (a.seal ? h("code", { title: a.seal.hash ?? "" }, String(a.seal.hash ?? a.seal).slice(0, 12)) : "not yet") },
      { title: "Charge", number: true, cell: (a) => usd(a.charge_nanos) },
    ], receipt.attempts),
  ];
}
