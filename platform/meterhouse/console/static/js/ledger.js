// The ledger: search, export, verification, invoices, the audit log.

import { get, query, send } from "./api.js";
import { button, duration, field, h, moment, notify, number, pairs, select, show, table, tag, usd } from "./dom.js";
import { openReceipt } from "./receipt.js";

export async function ledgerPage({ session }) {
  const organizations = await list("/admin/organizations").catch(() => []);
  return [
    h("h1", {}, "Ledger"),
    h("p", { class: "lead" }, "Every answer's usage, as it is billed. Nothing here is ever changed; corrections are lines of their own."),
    recordsCard(session), organizations.length ? invoiceCard(organizations) : null, auditCard(),
  ];
}

const list = async (path) => (await get(path, { limit: 100 })).data;

function recordsCard(session) {
  const result = h("div", {});
  const request = h("input", { placeholder: "req_…" });
  const key = h("input", { placeholder: "key id" });
  const day = h("input", { type: "date", value: new Date().toISOString().slice(0, 10) });
  let after = null;
  const load = async (isFirst) => {
    const start = day.value ? Date.parse(`${day.value}T00:00:00Z`) / 1000 : null;
    const page = await get("/admin/ledger/records", {
      request_id: request.value.trim(), key_id: key.value.trim(), start_time: start, end_time: start && start + 86400,
      after: isFirst ? null : after, limit: 50,
    });
    after = page.last_id;
    const shown = [
      table([
        { title: "Request", cell: (r) => h("code", {}, String(r.request_id ?? r.id).slice(-12)) },
        { title: "Begun", cell: (r) => moment(r.admitted_at / (r.admitted_at > 1e11 ? 1000 : 1)) },
        { title: "Model", cell: (r) => r.model },
        { title: "Outcome", cell: (r) => tag(r.outcome, r.outcome === "completed" ? "good" : "bad") },
        { title: "Exactness", cell: (r) => r.exactness },
        { title: "In", number: true, cell: (r) => number(r.input_tokens) },
        { title: "Out", number: true, cell: (r) => number(r.output_tokens) },
        { title: "Time", number: true, cell: (r) => duration(r.duration_ms) },
        { title: "Charge", number: true, cell: (r) => usd(r.charge_nanos) },
      ], page.data, { empty: "No record matches.", open: (r) => openReceipt(session, r.request_id ?? r.id) }),
      page.has_more ? button("More records", () => load(false)) : null,
    ];
    if (isFirst) show(result, shown);
    else {
      result.lastChild?.remove();
      shown.filter(Boolean).forEach((part) => result.append(part));
    }
  };
  const form = h("form", { class: "row", onsubmit: (event) => {
    event.preventDefault();
    load(true).catch((error) => notify(error.message, true));
  } }, field("Request", request), field("Key", key), field("Day (UTC)", day), h("button", { class: "main" }, "Search"));
  load(true).catch((error) => show(result, h("p", { class: "error" }, error.message)));
  return h("div", { class: "card" }, h("h2", {}, "Records"), form, result);
}

function invoiceCard(organizations) {
  const organization = select(organizations.map((o) => [o.id, o.name]), organizations[0].id);
  const month = h("input", { type: "month", value: new Date().toISOString().slice(0, 7) });
  const result = h("div", {});
  const path = () => `/admin/organizations/${encodeURIComponent(organization.value)}/invoices/${month.value}`;
  const look = button("Show", async () => {
    const invoice = await get(path());
    show(result,
      pairs([["Month", invoice.month], ["Total", usd(invoice.total_nanos ?? invoice.charge_nanos ?? 0)], ["Lines", number(invoice.lines?.length ?? 0)]]),
      h("p", {}, h("a", { href: query(path(), { format: "html" }), target: "_blank", rel: "noopener" }, "Printable page"), " · ",
        h("a", { href: query(path(), { format: "csv" }) }, "CSV")));
  }, "main");
  const verify = button("Verify the chain", async () => {
    const found = await send("POST", "/admin/ledger/verify", { organization_id: organization.value });
    show(result, h("p", {}, found.is_intact ?? found.ok ? tag("intact", "good") : tag("broken", "bad"), " ", `${number(found.entries ?? found.checked ?? 0)} entries were checked.`));
  });
  return h("div", { class: "card" }, h("h2", {}, "Invoices and proof"), h("div", { class: "row" }, field("Organization", organization), field("Month", month), look, verify), result);
}

function auditCard() {
  const result = h("div", {}, h("p", { class: "busy" }, "Loading"));
  get("/admin/audit", { limit: 50 }).then((page) => show(result, table([
    { title: "When", cell: (e) => moment(e.effective_at ?? e.at) },
    { title: "Who", cell: (e) => h("code", {}, e.actor?.id ?? e.actor?.api_key?.id ?? e.actor?.type ?? "–") },
    { title: "Did", cell: (e) => e.type ?? e.action },
    { title: "To", cell: (e) => h("code", {}, e.target_id ?? e.target?.id ?? e.project?.id ?? "–") },
  ], page.data, { empty: "Nobody changed anything yet." }))).catch((error) => show(result, h("p", { class: "error" }, error.message)));
  return h("div", { class: "card" }, h("h2", {}, "Audit log"), result);
}
