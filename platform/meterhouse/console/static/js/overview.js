// Spend, traffic and errors over a chosen span.

import { get } from "./api.js";
import { compact, duration, h, roughUsd, select, show } from "./dom.js";
import { plot } from "./plot.js";

const SPANS = [["3600/1m", "Last hour"], ["86400/1h", "Last day"], ["604800/1h", "Last 7 days"], ["2592000/1d", "Last 30 days"]];
const WAYS = [["model", "by model"], ["project", "by project"], ["key", "by key"], ["provider", "by provider"]];
const OWNERS = { caller: "caller", limit: "limit", provider: "provider", us: "us" };

export async function overviewPage({ signal }) {
  let span = SPANS[1][0];
  let by = "model";
  const figures = h("div", {});
  const plots = h("div", {});
  const load = async () => {
    const now = Math.floor(Date.now() / 1000);
    const [seconds, width] = span.split("/");
    const [lines, owners, today, month, last] = await Promise.all([
      get("/admin/series", { start_time: now - Number(seconds), bucket_width: width, by, top: 5 }),
      get("/admin/series", { start_time: now - Number(seconds), bucket_width: width, by: "owner" }),
      get("/admin/series", { start_time: startOfDay(now), bucket_width: "1h" }),
      get("/admin/series", { start_time: startOfMonth(), bucket_width: "1d" }),
      get("/admin/ledger/records", { start_time: now - Number(seconds), limit: 100 }).catch(() => ({ data: [] })),
    ]);
    if (signal.aborted) return;
    show(figures, cards({ lines, owners, today, month, seconds: Number(seconds), last: last.data }));
    show(plots, charts(lines, owners, by));
  };
  const timer = setInterval(() => load().catch(() => {}), 10000);
  signal.addEventListener("abort", () => clearInterval(timer));
  const again = () => load().catch((error) => show(figures, h("p", { class: "error", role: "alert" }, error.message)));
  const spanChoice = select(SPANS, span, (value) => ((span = value), again()));
  const wayChoice = select(WAYS, by, (value) => ((by = value), again()));
  spanChoice.setAttribute("aria-label", "Span");
  wayChoice.setAttribute("aria-label", "Lines");
  await load();
  return [h("h1", {}, "Overview"), h("p", { class: "lead" }, "What was used and what it cost, from the ledger."),
    h("div", { class: "row" }, spanChoice, wayChoice), figures, plots];
}

const sum = (series, measure) => series.lines.reduce((all, line) => all + line[measure].reduce((a, b) => a + b, 0), 0);
const startOfDay = (now) => now - (now % 86400);
const startOfMonth = () => Date.UTC(new Date().getUTCFullYear(), new Date().getUTCMonth()) / 1000;

function cards({ lines, owners, today, month, seconds, last }) {
  const requests = sum(lines, "requests");
  const errors = sum(owners, "errors");
  const tokens = sum(lines, "input_tokens") + sum(lines, "output_tokens");
  return h("div", { class: "cards" },
    card("Spent today", roughUsd(sum(today, "charge_nanos")), "UTC"),
    card("Spent this month", roughUsd(sum(month, "charge_nanos")), "UTC"),
    card("Requests", compact(requests), `${compact(requests / seconds)}/s`),
    card("Tokens", compact(tokens), `${compact(tokens / seconds)}/s`),
    card("First token", duration(part(last, 0.5)), `p50; ${duration(part(last, 0.95))} p95, last ${last.length}`),
    card("Errors", compact(errors), requests ? `${((100 * errors) / requests).toFixed(1)} %` : ""));
}

// The value that so large a part of the last records stays below.
function part(records, share) {
  const times = records.map((r) => r.time_to_first_token_ms).filter((ms) => ms !== null).sort((a, b) => a - b);
  return times.length ? times[Math.min(times.length - 1, Math.floor(times.length * share))] : null;
}

function card(title, value, more) {
  return h("div", { class: "card" }, h("h2", {}, title), h("div", { class: "figure" }, value, " ", h("small", {}, more)));
}

function charts(lines, owners, by) {
  if (!sum(lines, "requests") && !sum(owners, "errors")) {
    return h("div", { class: "card empty" }, h("p", {}, "Nothing was asked in this span yet."),
      h("p", {}, "Issue a key under ", h("a", { href: "#/keys" }, "Keys and limits"), ", call the gateway with it, and this page fills itself."));
  }
  const named = (measures) => lines.lines.map((line) => ({
    name: line.name ?? (lines.lines.length > 1 ? "others" : "all"),
    values: lines.times.map((_, i) => measures.reduce((all, measure) => all + line[measure][i], 0)),
  }));
  const wrong = owners.lines.filter((line) => line.name && sum({ lines: [line] }, "errors"))
    .map((line) => ({ name: OWNERS[line.name] ?? line.name, values: line.errors }));
  const chart = (title, options) => h("div", { class: "card" }, h("h2", {}, title), plot({ times: lines.times, label: `${title} by ${by}`, ...options }));
  return h("div", { class: "columns" },
    chart("Spend", { lines: named(["charge_nanos"]), format: roughUsd }),
    chart("Requests", { lines: named(["requests"]), format: compact }),
    chart("Tokens", { lines: named(["input_tokens", "output_tokens"]), format: compact }),
    wrong.length ? chart("Errors by owner", { times: owners.times, lines: wrong, format: compact })
      : h("div", { class: "card" }, h("h2", {}, "Errors by owner"), h("p", { class: "empty" }, "None in this span.")));
}
