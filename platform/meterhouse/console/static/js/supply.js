// Providers, routes and prices.

import { get, send } from "./api.js";
import { button, confirm, dialog, field, h, moment, notify, show, table, tag } from "./dom.js";

export async function supplyPage() {
  const [providers, routes, prices, health] = await Promise.all([
    get("/admin/providers"), get("/admin/routes"), get("/admin/prices", { limit: 100 }), get("/health"),
  ]);
  return [
    h("h1", {}, "Providers"),
    h("p", { class: "lead" }, "Who answers, how they fare, and what they cost. Changes are in force everywhere within two seconds."),
    h("div", { class: "card" }, h("h2", {}, "Providers"), providerTable(providers.data ?? providers, health)),
    h("div", { class: "card" }, h("h2", {}, "Routes"), routeTable(routes.data ?? routes)),
    h("div", { class: "card" }, h("h2", {}, "Prices"), h("div", { class: "row" }, button("Set a price", priceDialog, "main")), priceTable(prices.data ?? prices)),
  ];
}

function providerTable(providers, health) {
  const states = health.providers ?? {};
  return table([
    { title: "Name", cell: (p) => p.name },
    { title: "From", cell: (p) => p.source ?? "–" },
    { title: "Address", cell: (p) => h("code", {}, p.base_url ?? "–") },
    { title: "State", cell: (p) => {
      const found = states[p.name];
      const text = typeof found === "string" ? found : found?.status ?? (p.is_on === false ? "off" : "on");
      return tag(p.problem ?? p.error ?? text, p.problem || p.error ? "bad" : "good");
    } },
  ], providers, { empty: "No provider is on. Set a credential in the environment, or PUT /admin/providers/NAME." });
}

function routeTable(routes) {
  const rows = routes.flatMap((route) => (route.deployments ?? []).map((d) => ({ ...d, route })));
  const change = async (row, isOn) => {
    const model = row.route.model ?? row.route.id;
    const others = row.route.deployments.filter((d) => d !== row && (d.provider !== row.provider || d.upstream_model !== row.upstream_model));
    if (!isOn && !(await confirm(`Take ${row.provider} out of '${model}'?`, "Requests that run with it go on; new ones go to the other deployments.", "Take it out"))) return;
    const keep = (d) => ({ provider: d.provider, upstream_model: d.upstream_model, order: d.order, weight: d.weight });
    await send("PUT", `/admin/routes/${model}`, { deployments: (isOn ? row.route.deployments : others).map(keep) });
    notify(`The route '${model}' is changed.`);
    window.dispatchEvent(new Event("hashchange"));
  };
  return table([
    { title: "Model", cell: (row) => row.route.model ?? row.route.id },
    { title: "Provider", cell: (row) => row.provider },
    { title: "Its model", cell: (row) => row.upstream_model },
    { title: "Breaker", cell: (row) => tag(row.state ?? "closed", (row.state ?? "closed") === "closed" ? "good" : "bad") },
    { title: "Under way", number: true, cell: (row) => row.in_flight ?? 0 },
    { title: "", cell: (row) => (row.route.deployments.length > 1 ? button("Take out", () => change(row, false)) : "") },
  ], rows, { empty: "No model is routed." });
}

function priceTable(prices) {
  const history = new Map();
  for (const price of prices) {
    const name = `${price.provider}/${price.model}`;
    history.set(name, [...(history.get(name) ?? []), price]);
  }
  const text = (price) => price.components.map((c) => `${c.kind} $${(c.nanos_per_million / 1e9).toLocaleString("en-US", { maximumFractionDigits: 9 })}`).join(", ");
  return table([
    { title: "Model", cell: ([name]) => name },
    { title: "Per million", cell: ([, all]) => text(all[0]) },
    { title: "Since", cell: ([, all]) => moment(all[0].effective_from) },
    { title: "Source", cell: ([, all]) => all[0].source },
    { title: "", cell: ([name, all]) => (all.length > 1 ? button(`History (${all.length})`, () => dialog(`Prices of ${name}`,
      table([{ title: "From", cell: (p) => moment(p.effective_from) }, { title: "Per million", cell: text }, { title: "Source", cell: (p) => p.source }], all))) : "") },
  ], [...history.entries()], { empty: "No price was set by you; the built-in price list applies." });
}

function priceDialog() {
  const inputs = {};
  const made = (name, label, hint) => field(label, (inputs[name] = h("input", { inputmode: "decimal" })), hint);
  const box = dialog("Set a price",
    made("provider", "Provider"), made("model", "Model", "The provider's own name of it"),
    made("input_usd", "Input, USD per million tokens"), made("output_usd", "Output, USD per million tokens"),
    made("cached_input_usd", "Cached input (optional)"), made("request_usd", "Per request (optional)"),
    button("Set it from now on", async () => {
      const body = Object.fromEntries(Object.entries(inputs).map(([k, input]) => [k, input.value.trim()]).filter(([, v]) => v));
      await send("POST", "/admin/prices", body);
      box.close();
      window.dispatchEvent(new Event("hashchange"));
    }, "main"));
  show(box.querySelector("h2"), "Set a price");
}
