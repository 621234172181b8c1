// Spend against budgets, traffic, latency and errors over a chosen span.

import { get } from "./api.js";
import { budgetsCard } from "./budgets.js";
import { compact, duration, h, number, roughUsd, select, show, table, usd } from "./dom.js";
import { loadNames } from "./names.js";
import { plot } from "./plot.js";

const SPANS = [["3600/1m", "Last hour"], ["86400/1h", "Last day"], ["604800/1h", "Last 7 days"], ["2592000/1d", "Last 30 days"]];
const SECONDS = { "1m": 60, "1h": 3600, "1d": 86400 };
const WAYS = [["model", "by model"], ["project", "by project"], ["key", "by key"], ["provider", "by provider"]];
const OWNERS = ["caller", "limit", "provider", "us"];
const REFRESH_MS = 15000;

export async function overviewPage({ signal }) {
  let span = SPANS[1][0];
  let by = "model";
  const figures = h("div", {});
  const plots = h("div", {});
  const lines = h("div", {});
  const budgets = budgetsCard();
  const load = async () => {
    const found = await read(span, by);
    if (signal.aborted) return;
    show(figures, cards(found));
    show(plots, charts(found));
    show(lines, found.isEmpty ? null : breakdownCard(found));
  };
  // What somebody reads or points at just now stays as it is; what nobody sees is not asked for.
  const isInUse = () => document.hidden || [plots, lines].some((part) => part.matches(":hover, :focus-within"));
  const timer = setInterval(() => isInUse() || Promise.all([load(), budgets.load()]).catch(() => {}), REFRESH_MS);
  signal.addEventListener("abort", () => clearInterval(timer));
  const again = () => load().catch((error) => show(figures, h("p", { class: "error", role: "alert" }, error.message)));
  const spanChoice = select(SPANS, span, (value) => ((span = value), again()));
  const wayChoice = select(WAYS, by, (value) => ((by = value), again()));
  spanChoice.setAttribute("aria-label", "Span");
  wayChoice.setAttribute("aria-label", "Lines");
  await Promise.all([load(), budgets.load()]);
  return [h("h1", {}, "Overview"), h("p", { class: "lead" }, "What was used and what it cost, from the ledger."),
    h("div", { class: "row" }, spanChoice, wayChoice), figures, budgets.element, plots, lines];
}

async function read(span, by) {
  const now = Math.floor(Date.now() / 1000);
  const [seconds, width] = span.split("/");
  // Whole buckets: those of hours and days cost the gateway the same for any number of requests.
  const start = Math.floor((now - Number(seconds)) / SECONDS[width]) * SECONDS[width];
  const [lines, owners, today, month, breakdown] = await Promise.all([
    get("/admin/series", { start_time: start, bucket_width: width, by, top: 5 }),
    get("/admin/series", { start_time: start, bucket_width: width, by: "owner" }),
    get("/admin/series", { start_time: now - (now % 86400), bucket_width: "1h" }),
    get("/admin/series", { start_time: startOfMonth(), bucket_width: "1d" }),
    get("/admin/breakdown", { start_time: start, by }),
  ]);
  const ids = [...lines.lines, ...breakdown.lines].map((line) => line.name).filter(Boolean);
  const { total } = breakdown;
  return {
    by, width, lines, owners, today, month, breakdown,
    names: await loadNames(by, ids),
    seconds: now - start,
    errors: OWNERS.reduce((all, owner) => all + total.errors[owner], 0),
    isEmpty: !total.attempts && !total.requests && !OWNERS.some((owner) => total.errors[owner]),
  };
}

const sum = (series, measure) => series.lines.reduce((all, line) => all + line[measure].reduce((a, b) => a + b, 0), 0);
const startOfMonth = () => Date.UTC(new Date().getUTCFullYear(), new Date().getUTCMonth()) / 1000;

function cards({ today, month, breakdown: { total }, seconds, errors }) {
  const tokens = total.input_tokens + total.output_tokens;
  const asked = total.requests + total.refused;
  return h("div", { class: "cards" },
    card("Spent today", roughUsd(sum(today, "charge_nanos")), "UTC"),
    card("Spent this month", roughUsd(sum(month, "charge_nanos")), "UTC"),
    card("Requests", compact(total.requests), `${compact(total.requests / seconds)}/s`),
    card("Tokens", compact(tokens), `${compact(tokens / seconds)}/s`),
    card("First token", duration(total.first_token.p50_ms), `p50; ${duration(total.first_token.p95_ms)} p95`),
    card("Errors", compact(errors), asked ? `${((100 * errors) / asked).toFixed(1)} % of ${compact(asked)}` : ""));
}

function card(title, value, more) {
  return h("div", { class: "card" }, h("h2", {}, title), h("div", { class: "figure" }, value, " ", h("small", {}, more)));
}

function charts({ by, width, lines, owners, names, isEmpty }) {
  if (isEmpty) {
    return h("div", { class: "card empty" }, h("p", {}, "Nothing was asked in this span yet."),
      h("p", {}, "Issue a key under ", h("a", { href: "#/keys" }, "Keys and limits"), ", call the gateway with it, and this page fills itself."));
  }
  const used = lines.lines.filter((line) => sum({ lines: [line] }, "requests"));
  const named = (measures) => used.map((line) => ({
    name: names.of(line.name) || "others",
    values: lines.times.map((_, i) => measures.reduce((all, measure) => all + line[measure][i], 0)),
  }));
  const wrong = owners.lines.filter((line) => line.name && sum({ lines: [line] }, "errors"))
    .map((line) => ({ name: line.name, values: line.errors }));
  const chart = (title, options, label = `${title} by ${by}`) =>
    h("div", { class: "card" }, h("h2", {}, title), plot({ times: lines.times, label, ...options }));
  return h("div", { class: "columns" },
    chart("Spend", { lines: named(["charge_nanos"]), format: roughUsd }),
    chart("Requests", { lines: named(["requests"]), format: compact }),
    chart("Tokens", { lines: named(["input_tokens", "output_tokens"]), format: compact }),
    wrong.length ? chart("Errors by owner", { times: owners.times, lines: wrong, format: compact, isNamed: true }, "Errors by owner")
      : h("div", { class: "card" }, h("h2", {}, "Errors by owner"), h("p", { class: "empty" },
        width === "1m" ? "No attempt failed. Refused requests are counted by the hour: see the table." : "None in this span.")));
}

function breakdownCard({ by, breakdown, names }) {
  const { lines, total, more_lines: more } = breakdown;
  const kind = by[0].toUpperCase() + by.slice(1);
  const errors = OWNERS.map((owner, n) => ({ title: n ? owner : `Errors: ${owner}`, number: true, cell: (line) => number(line.errors[owner]) }));
  const rows = lines.length > 1 ? [...lines, { ...total, isTotal: true }] : lines;
  return h("div", { class: "card" }, h("h2", {}, `By ${by}`),
    table([
      { title: kind, cell: (line) => (line.isTotal ? h("strong", {}, "All") : names.of(line.name) || h("span", { class: "hint" }, "not listed")) },
      { title: "Spend", number: true, cell: (line) => usd(line.charge_nanos) },
      { title: "Requests", number: true, cell: (line) => number(line.requests) },
      { title: "In", number: true, cell: (line) => number(line.input_tokens) },
      { title: "Out", number: true, cell: (line) => number(line.output_tokens) },
      { title: "First token p50", number: true, cell: (line) => duration(line.first_token.p50_ms) },
      { title: "p95", number: true, cell: (line) => duration(line.first_token.p95_ms) },
      ...errors,
    ], rows, { empty: "Nothing in this span has one." }),
    more ? h("p", { class: "hint" }, `And ${number(more)} more.`) : null,
    h("p", { class: "hint" }, "Errors are attempts that failed, and requests that were turned away, by whose they are: the caller's, a limit's, the provider's, ours."));
}
