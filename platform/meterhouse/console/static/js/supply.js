// Providers, routes and prices.

import { get, send } from "./api.js";
import { button, compact, confirm, dialog, duration, field, h, moment, notify, number, show, table, tag } from "./dom.js";

const DAY_SECONDS = 86400;
const FEW = 10;
const MOST = 30;
const again = () => window.dispatchEvent(new Event("hashchange"));

export async function supplyPage() {
  const start = Math.floor(Date.now() / 3600000) * 3600 - DAY_SECONDS;
  const [providers, routes, prices, usage] = await Promise.all([
    get("/admin/providers"), get("/admin/routes"), get("/admin/prices"), get("/admin/breakdown", { start_time: start, by: "provider" }),
  ]);
  return [
    h("h1", {}, "Providers"),
    h("p", { class: "lead" }, "Who answers, how they fare, and what they cost. Changes are in force everywhere within two seconds."),
    h("div", { class: "card" }, h("h2", {}, "Providers"), providerTable(providers.data, usage.lines),
      h("p", { class: "hint" }, "Attempts, errors and latency are of the last 24 hours.")),
    h("div", { class: "card" }, h("h2", {}, "Routes"), routesPart(routes.data),
      h("p", { class: "hint" }, "Breakers and failures are those of the worker that answered just now, of its last 30 seconds.")),
    h("div", { class: "card" }, h("h2", {}, "Prices"), h("div", { class: "row" }, button("Set a price", priceDialog, "main")), priceTable(prices.data)),
  ];
}

function providerTable(providers, lines) {
  const used = new Map(lines.map((line) => [line.name, line]));
  const figure = (say) => (p) => (used.has(p.name) ? say(used.get(p.name)) : "–");
  return table([
    { title: "Name", cell: (p) => p.name },
    { title: "From", cell: (p) => p.source },
    { title: "Address", cell: (p) => h("code", {}, p.base_url ?? "–") },
    { title: "State", cell: health },
    { title: "Attempts", number: true, cell: figure((line) => compact(line.attempts)) },
    { title: "Its errors", number: true, cell: figure((line) => compact(line.errors.provider)) },
    { title: "First token p50", number: true, cell: figure((line) => duration(line.first_token.p50_ms)) },
    { title: "p95", number: true, cell: figure((line) => duration(line.first_token.p95_ms)) },
    { title: "Whole p95", number: true, cell: figure((line) => duration(line.duration.p95_ms)) },
  ], providers, { empty: "No provider is on. Set a credential in the environment, or PUT /admin/providers/NAME." });
}

function health(provider) {
  if (!provider.is_on) return [tag("off", "bad"), " ", h("span", { class: "hint" }, provider.detail)];
  if (provider.is_reachable === false) return [tag("not reachable", "bad"), " ", h("span", { class: "hint" }, provider.detail)];
  return provider.is_reachable === null ? tag("on") : tag("reachable", "good");
}

// A changed route is shown as the worker has it that changed it; the others follow within two seconds.
function routesPart(routes) {
  const result = h("div", {});
  // What somebody may have to look at comes first.
  routes = routes.toSorted((a, b) => isTroubled(b) - isTroubled(a) || b.deployments.length - a.deployments.length);
  const filter = search("Filter routes", () => draw());
  const draw = () => {
    const found = routes.filter((route) => matches(filter, route.model));
    show(result, routeTable(found.slice(0, MOST), replace), rest(found));
  };
  const replace = (changed) => {
    routes = routes.map((route) => (route.model === changed.model ? changed : route));
    draw();
  };
  draw();
  return [routes.length > FEW ? h("div", { class: "row" }, filter) : null, result];
}

const isTroubled = (route) => route.deployments.some((d) => d.state !== "closed");
const rest = (found) => (found.length > MOST ? h("p", { class: "hint" }, `And ${number(found.length - MOST)} more: name a part of one above.`) : null);
const search = (label, oninput) => h("input", { type: "search", placeholder: "part of a model's name", "aria-label": label, oninput });
const matches = (filter, text) => text.toLowerCase().includes(filter.value.trim().toLowerCase());

const BREAKERS = { closed: ["closed", "good"], busy: ["busy", "warn"], off: ["off", ""], open: ["open", "bad"], account: ["account", "bad"] };

function routeTable(routes, replace) {
  const rows = routes.flatMap((route) => route.deployments.map((d) => ({ ...d, route })));
  return table([
    { title: "Model", cell: (row) => row.route.model },
    { title: "Provider", cell: (row) => row.provider },
    { title: "Its model", cell: (row) => row.upstream_model },
    { title: "Order", number: true, cell: (row) => row.order },
    { title: "Weight", number: true, cell: (row) => row.weight },
    { title: "Breaker", cell: (row) => h("span", { title: row.reason }, tag(...(BREAKERS[row.state] ?? [row.state, "bad"]))) },
    { title: "Under way", number: true, cell: (row) => row.in_flight },
    { title: "Attempts", number: true, cell: (row) => row.attempts },
    { title: "Failures", number: true, cell: (row) => row.failures },
    { title: "", cell: (row) => switcher(row, replace) },
  ], rows, { empty: "No model is routed. A provider that is on brings the models that it serves." });
}

function switcher(row, replace) {
  const change = async () => {
    const { model, deployments } = row.route;
    if (row.is_on && !(await confirm(`Switch ${row.provider} off for '${model}'?`, warning(row), "Switch it off", "Leave it on"))) return;
    const wanted = deployments.map((d) => ({
      provider: d.provider, upstream_model: d.upstream_model, order: d.order, weight: d.weight,
      is_on: d.id === row.id ? !row.is_on : d.is_on,
    }));
    const changed = await send("PUT", `/admin/routes/${model.split("/").map(encodeURIComponent).join("/")}`, { deployments: wanted });
    notify(`${row.provider} is ${row.is_on ? "off" : "on"} for '${model}'.`);
    replace(changed);
  };
  const made = button(row.is_on ? "Switch off" : "Switch on", change);
  made.setAttribute("aria-label", `Switch ${row.provider} ${row.is_on ? "off" : "on"} for ${row.route.model}`);
  return made;
}

function warning(row) {
  const left = row.route.deployments.filter((d) => d.is_on && d.id !== row.id).map((d) => d.provider);
  const others = left.length ? `new ones go to ${left.join(", ")}` : "new ones get a 404, because nobody else answers this model";
  return `Requests that run with it go on; ${others}. It stays in the list and can be switched on again.`;
}

const price = (p) => p.components.map((c) => `${c.kind} $${(c.nanos_per_million / 1e9).toLocaleString("en-US", { maximumFractionDigits: 9 })}`).join(", ");

function priceTable(prices) {
  const history = new Map();
  for (const one of prices) {
    const name = `${one.provider}/${one.model}`;
    history.set(name, [...(history.get(name) ?? []), one]);
  }
  const rows = [...history].map(([name, all]) => {
    const newestFirst = [...all].reverse().sort((a, b) => b.effective_from - a.effective_from);
    return { name, all: newestFirst, now: newestFirst.find((p) => p.effective_from * 1000 <= Date.now()) ?? newestFirst.at(-1) };
  });
  rows.sort((a, b) => (b.now.source === "operator") - (a.now.source === "operator") || a.name.localeCompare(b.name));
  return pricesPart(rows);
}

function pricesPart(rows) {
  const result = h("div", {});
  const columns = [
    { title: "Model", cell: (row) => row.name },
    { title: "USD per million", cell: (row) => price(row.now) },
    { title: "Since", cell: (row) => moment(row.now.effective_from) },
    { title: "Source", cell: (row) => row.now.source },
    { title: "", cell: (row) => (row.all.length > 1 ? button(`History (${row.all.length})`, () => historyDialog(row)) : "") },
  ];
  const filter = search("Filter prices", () => draw());
  const empty = "No price matches. Set one: what has no price is refused to keys with a budget.";
  const draw = () => {
    const found = rows.filter((row) => matches(filter, row.name));
    show(result, table(columns, found.slice(0, MOST), { empty }), rest(found));
  };
  draw();
  return [rows.length > FEW ? h("div", { class: "row" }, filter) : null, result];
}

function historyDialog(row) {
  const state = (p) => (p === row.now ? tag("in force", "good") : p.effective_from * 1000 > Date.now() ? tag("to come", "warn") : tag("before"));
  dialog(`Prices of ${row.name}`, h("p", { class: "hint" }, "A price is never edited: a new one supersedes it from a moment on."),
    table([
      { title: "From", cell: (p) => moment(p.effective_from) }, { title: "", cell: state },
      { title: "USD per million", cell: price }, { title: "Source", cell: (p) => p.source },
    ], row.all));
}

function priceDialog() {
  const inputs = {};
  const made = (name, label, hint, isRequired = false) =>
    field(label, (inputs[name] = h("input", { inputmode: name.endsWith("_usd") ? "decimal" : null, required: isRequired })), hint);
  const from = h("input", { type: "datetime-local" });
  const form = h("form", {},
    made("provider", "Provider", null, true), made("model", "Model", "The provider's own name of it", true),
    made("input_usd", "Input, USD per million tokens", null, true), made("output_usd", "Output, USD per million tokens", null, true),
    made("cached_input_usd", "Cached input (optional)"), made("request_usd", "Per request (optional)"),
    field("In force from (optional)", from, "In your time zone; left out: from now on"),
    button("Set the price", async () => {
      if (!form.reportValidity()) return;
      const body = Object.fromEntries(Object.entries(inputs).map(([k, input]) => [k, input.value.trim()]).filter(([, v]) => v));
      if (from.value) body.effective_from = Math.floor(new Date(from.value).getTime() / 1000);
      await send("POST", "/admin/prices", body);
      box.close();
      notify("The price is set.");
      again();
    }, "main"));
  form.addEventListener("submit", (event) => event.preventDefault());
  const box = dialog("Set a price", form);
}
