// The receipt of one request: attempts, price, charge, exactness, seal; and the list of those of a tenant's key.

import { get } from "./api.js";
import { button, dialog, duration, field, h, moment, notify, number, pairs, select, show, table, tag, usd } from "./dom.js";

export async function openReceipt(session, requestId) {
  try {
    const path = session.role === "tenant" ? "/v1/receipts/" : "/admin/ledger/receipts/";
    const receipt = await get(`${path}${encodeURIComponent(requestId)}`);
    dialog("Receipt", ...receiptParts(receipt, session.trace_url));
  } catch (error) {
    notify(error.code === "receipt_pending" ? "The receipt is written when the request is over. Ask again in a second." : error.message, true);
  }
}

const OUTCOMES = ["completed", "client_gone", "upstream_failed", "refused", "cut", "worker_lost", "not_sent"];
const outcomeTag = (outcome) => tag(outcome.replaceAll("_", " "), outcome === "completed" ? "good" : "bad");
const PAGE = 20;

// What a key asked, the newest first; a page that was looked through may hold nothing of what is filtered by.
export function receiptsCard(session) {
  const result = h("div", {}, h("p", { class: "busy" }, "Loading"));
  const more = h("div", { class: "row" });
  const day = h("input", { type: "date" });
  const model = h("input", { placeholder: "every model", size: 22 });
  const outcome = select([["", "every outcome"], ...OUTCOMES.map((name) => [name, name.replaceAll("_", " ")])], "");
  let turn = 0;
  const load = async (before, wanted) => {
    const mine = (turn += 1);
    const page = await get("/v1/receipts", { ...wanted, after: before.at, limit: PAGE });
    if (mine !== turn) return;
    const rows = [...before.rows, ...page.data];
    const empty = page.has_more ? "None among the newest. Look further back." : "No request matches.";
    show(result, receiptTable(session, rows, empty));
    const goOn = () => load({ at: page.last_id, rows }, wanted);
    show(more, page.has_more ? button(page.data.length ? "Earlier requests" : "Look further back", goOn) : null);
  };
  const search = () => load({ at: null, rows: [] }, { day: day.value, model: model.value.trim(), outcome: outcome.value })
    .catch((error) => show(result, h("p", { class: "error" }, error.message)));
  search();
  const form = h("form", { class: "row", onsubmit: (event) => {
    event.preventDefault();
    search();
  } }, field("Day (UTC)", day), field("Model", model), field("Outcome", outcome), h("button", { class: "main" }, "Search"));
  return h("div", { class: "card" }, h("h2", {}, "Requests"),
    h("p", { class: "hint" }, "Those of the last 31 days, or of one day, with this key. A click opens the receipt."), form, result, more);
}

function receiptTable(session, rows, empty) {
  const sum = (receipt, measure) => receipt.attempts.reduce((all, attempt) => all + attempt[measure], 0);
  return table([
    { title: "Begun", cell: (r) => moment(r.admitted_at / 1000) },
    { title: "Model", cell: (r) => r.model },
    { title: "Outcome", cell: (r) => outcomeTag(r.outcome) },
    { title: "In", number: true, cell: (r) => number(sum(r, "input_tokens")) },
    { title: "Out", number: true, cell: (r) => number(sum(r, "output_tokens")) },
    { title: "Charge", number: true, cell: (r) => usd(r.charge_nanos) },
    { title: "Request", cell: (r) => h("code", { title: r.id }, `…${r.id.slice(-12)}`) },
  ], rows, { empty, open: (r) => openReceipt(session, r.id) });
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
