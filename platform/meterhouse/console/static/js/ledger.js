// The ledger: search, export, verification, invoices, the audit log.

import { get, query, send, text } from "./api.js";
import { button, dialog, duration, field, h, moment, notify, number, pairs, select, show, table, tag, usd } from "./dom.js";
import { openReceipt } from "./receipt.js";

export async function ledgerPage({ session }) {
  const organizations = await list("/admin/organizations").catch(() => []);
  return [
    h("h1", {}, "Ledger"),
    h("p", { class: "lead" }, "Every answer's usage, as it is billed. Nothing here is ever changed; corrections are lines of their own."),
    session.role === "reader" ? null : recordsCard(session), organizations.length ? invoiceCard(session, organizations) : null, auditCard(),
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
        { title: "Request", cell: (r) => h("code", {}, r.request_id.slice(-12)) },
        { title: "Begun", cell: (r) => moment(r.admitted_at_ms / 1000) },
        { title: "Model", cell: (r) => r.model },
        { title: "Outcome", cell: (r) => tag(r.outcome, r.outcome === "completed" ? "good" : "bad") },
        { title: "Exactness", cell: (r) => r.exactness },
        { title: "In", number: true, cell: (r) => number(r.usage.input_tokens) },
        { title: "Out", number: true, cell: (r) => number(r.usage.output_tokens) },
        { title: "Time", number: true, cell: (r) => duration(r.duration_ms) },
        { title: "Charge", number: true, cell: (r) => usd(r.charge_nanos) },
      ], page.data, { empty: "No record matches.", open: (r) => openReceipt(session, r.request_id) }),
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

function invoiceCard(session, organizations) {
  const organization = select(organizations.map((o) => [o.id, o.name]), organizations[0].id);
  const month = h("input", { type: "month", value: new Date().toISOString().slice(0, 7) });
  const result = h("div", {});
  const path = () => `/admin/organizations/${encodeURIComponent(organization.value)}/invoices/${month.value}`;
  const look = button("Invoice", async () => show(result, invoiceParts(await get(path()), path())), "main");
  const span = () => {
    const start = Date.parse(`${month.value}-01T00:00:00Z`);
    const end = new Date(start);
    end.setUTCMonth(end.getUTCMonth() + 1);
    return { organization_id: organization.value, start_time: start / 1000, end_time: end.getTime() / 1000 };
  };
  const verify = button("Verify", async () => {
    const found = await send("POST", "/admin/ledger/verify", await text("/admin/ledger/export", span()));
    show(result, verification(found));
  });
  const download = button("Export", () => {
    h("a", { href: query("/admin/ledger/export", span()), download: "" }).click();
  });
  return h("div", { class: "card" }, h("h2", {}, "Invoices and proof"),
    h("p", { class: "hint" }, "An export holds every record with its seal, signed by this host; Verify makes one and checks each link of the chain, and compares it with the database."),
    h("div", { class: "row" }, field("Organization", organization), field("Month", month), look,
      session.role !== "reader" && [download, verify]), result);
}

function invoiceParts(invoice, path) {
  return [
    pairs([["Month", invoice.month], ["State", invoice.status], ["Total", usd(invoice.total_nanos)], ["Lines", number(invoice.lines.length)]]),
    h("p", {}, h("a", { href: query(path, { format: "html" }), target: "_blank", rel: "noopener" }, "Printable page"), " · ",
      h("a", { href: query(path, { format: "csv" }) }, "CSV")),
  ];
}

function verification(found) {
  const { usage_rows: rows, adjustment_rows: adjustments, charge_nanos: charged } = found.totals;
  return [
    h("p", {}, found.is_good ? tag("intact", "good") : tag("broken", "bad"), " ",
      `${number(rows)} records and ${number(adjustments)} adjustments, ${usd(charged)}`, found.is_compared ? ", compared with the database." : "."),
    found.findings.length ? h("ul", {}, found.findings.slice(0, 50).map((text) => h("li", { class: "error" }, text))) : null,
  ];
}

function auditCard() {
  const result = h("div", {}, h("p", { class: "busy" }, "Loading"));
  const more = h("div", { class: "row" });
  let after = null;
  const load = async (isFirst) => {
    const page = await get("/admin/audit", { limit: 50, after });
    after = page.last_id;
    const shown = table([
      { title: "When", cell: (e) => moment(e.created_at) },
      { title: "Who", cell: (e) => [h("code", {}, e.actor_id), " ", h("span", { class: "hint" }, e.actor_role)] },
      { title: "Did", cell: (e) => e.action },
      { title: "To", cell: (e) => h("code", {}, e.target_id) },
      { title: "From", cell: (e) => e.address ?? "this machine" },
    ], page.data, { empty: "Nobody changed anything yet.", open: showChange });
    if (isFirst) show(result, shown);
    else result.append(shown);
    show(more, page.has_more ? button("Earlier changes", () => load(false)) : null);
  };
  load(true).catch((error) => show(result, h("p", { class: "error" }, error.message)));
  return h("div", { class: "card" }, h("h2", {}, "Audit log"), result, more);
}

function showChange(event) {
  const text = (value) => (value === null ? "nothing" : JSON.stringify(value, null, 2));
  dialog(event.action, pairs([["When", moment(event.created_at)], ["Who", event.actor_id], ["To", event.target_id], ["Request", event.request_id]]),
    h("div", { class: "columns" }, h("div", {}, h("h2", {}, "Before"), h("pre", {}, text(event.before))), h("div", {}, h("h2", {}, "After"), h("pre", {}, text(event.after)))));
}
