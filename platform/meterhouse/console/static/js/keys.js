// Keys: issue, rotate, revoke; limits of keys, projects and organizations, and where they stand.

import { get, send } from "./api.js";
import { button, confirm, dialog, field, h, moment, notify, pairs, select, show, table, tag } from "./dom.js";
import { limitBars, limitsForm } from "./limits.js";
import { listProjects } from "./names.js";

const PAGE = 50;

export async function keysPage({ session, rest }) {
  if (rest[0]) return keyPage(session, rest[0]);
  const mayChange = session.role !== "reader";
  const [projects, organizations] = await Promise.all([listProjects(), get("/admin/organizations", { limit: 100 })]);
  const choices = [["", "All projects"], ...projects.map((p) => [p.id, p.name])];
  const names = Object.fromEntries(choices);
  let project = "";
  let after = null;
  const list = h("div", {});
  const more = h("div", { class: "row" });
  const load = async (isFirst) => {
    const page = await get("/admin/keys", { project_id: project, after: isFirst ? null : after, limit: PAGE });
    after = page.last_id;
    const shown = table(columns(names), page.data, {
      empty: "There is no key yet. Issue one: it takes a name and a project.",
      open: (key) => (location.hash = `#/keys/${encodeURIComponent(key.id)}`),
    });
    if (isFirst) show(list, shown);
    else list.append(shown);
    show(more, page.has_more ? button("More keys", () => load(false)) : null);
  };
  const choice = select(choices, "", (value) => {
    project = value;
    load(true).catch((error) => notify(error.message, true));
  });
  choice.setAttribute("aria-label", "Project");
  const find = h("form", { onsubmit: (event) => {
    event.preventDefault();
    const id = new FormData(event.target).get("id").trim();
    if (id) location.hash = `#/keys/${encodeURIComponent(id)}`;
  } }, h("input", { name: "id", type: "search", placeholder: "Find by key id", "aria-label": "Find by key id" }));
  await load(true);
  return [
    h("h1", {}, "Keys and limits"),
    h("p", { class: "lead" }, "A key belongs to a project; the limits of its project and organization bind it as well."),
    h("div", { class: "row" }, mayChange && button("Issue a key", () => issueDialog(session, projects, organizations.data), "main"),
      mayChange && button("New project", () => projectDialog(organizations.data)), choice, find),
    h("div", { class: "card" }, list, more),
    h("div", { class: "card" }, h("h2", {}, "Limits of projects"),
      table([
        { title: "Project", cell: (p) => p.name },
        { title: "Id", cell: (p) => h("code", {}, p.id) },
        { title: "State", cell: (p) => (p.archived_at ? tag("archived", "bad") : tag("active", "good")) },
        { title: "", cell: (p) => mayChange && button("Limits", () => limitsDialog("project", p.id, p.name)) },
      ], projects, { empty: "There is no project yet." })),
    session.role === "operator" && h("div", { class: "card" }, h("h2", {}, "Limits of organizations"),
      table([
        { title: "Organization", cell: (o) => o.name },
        { title: "Id", cell: (o) => h("code", {}, o.id) },
        { title: "", cell: (o) => button("Limits", () => limitsDialog("organization", o.id, o.name)) },
      ], organizations.data), organizations.has_more ? h("p", { class: "hint" }, "These are the first hundred.") : null),
  ];
}

const columns = (names) => [
  { title: "Name", cell: (key) => h("a", { href: `#/keys/${encodeURIComponent(key.id)}` }, key.name) },
  { title: "Key", cell: (key) => h("code", {}, key.redacted_value) },
  { title: "Project", cell: (key) => names[key.project_id] ?? h("code", {}, key.project_id) },
  { title: "State", cell: state },
  { title: "Last used", cell: (key) => moment(key.last_used_at) },
  { title: "Own limits", cell: (key) => key.limits.join("; ") || "–" },
];

export function state(key) {
  if (key.revoked_at) return tag("revoked", "bad");
  if (key.expires_at && key.expires_at * 1000 < Date.now()) return tag("expired", "bad");
  return key.expires_at ? tag("expires", "warn") : tag("good", "good");
}

async function keyPage(session, id) {
  const key = await get(`/admin/keys/${encodeURIComponent(id)}`);
  const again = () => window.dispatchEvent(new Event("hashchange"));
  const revoke = async () => {
    if (!(await confirm(`Revoke '${key.name}'?`, "It stops at once, and answers that run with it are cut. This cannot be undone.", "Revoke the key"))) return;
    await send("DELETE", `/admin/keys/${encodeURIComponent(id)}`);
    notify(`The key '${key.name}' is revoked.`);
    again();
  };
  const rotate = () => {
    const hours = h("input", { type: "number", min: 0, max: 168, value: 24, required: true });
    const box = dialog(`Rotate '${key.name}'`,
      field("Both keys work for so many hours", hours, "Their uses count on one meter."),
      button("Issue the successor", async () => {
        const issued = await send("POST", `/admin/keys/${encodeURIComponent(id)}/rotate`, { overlap_seconds: Math.round(Number(hours.value) * 3600) });
        box.close();
        await shownOnce(session, issued);
      }, "main"));
  };
  const mayChange = session.role !== "reader" && !key.revoked_at;
  const standing = h("div", {}, h("p", { class: "busy" }, "Asking the meter"));
  limitBars(standing, `/admin/keys/${encodeURIComponent(id)}/limits`);
  return [
    h("p", {}, h("a", { href: "#/keys" }, "← All keys")),
    h("h1", {}, key.name), state(key),
    h("div", { class: "row" },
      mayChange && button("Rotate", rotate), mayChange && button("Limits", () => limitsDialog("key", key.id, key.name)),
      mayChange && button("Revoke", revoke, "bad")),
    h("div", { class: "columns" },
      h("div", { class: "card" }, h("h2", {}, "Key"), pairs([
        ["Id", h("code", {}, key.id)], ["Value", h("code", {}, key.redacted_value)], ["Project", h("code", {}, key.project_id)],
        ["Organization", h("code", {}, key.organization_id)], ["Scopes", key.scopes.join(", ")],
        ["Models", key.models ? key.models.join(", ") : "every model"], ["Addresses", key.ip_ranges.length ? key.ip_ranges.join(", ") : "anywhere"],
        ["Created", moment(key.created_at)], ["Expires", key.expires_at && moment(key.expires_at)], ["Last used", moment(key.last_used_at)],
      ])),
      h("div", { class: "card" }, h("h2", {}, "Limits that bind it"), standing)),
  ];
}

function issueDialog(session, projects, organizations) {
  if (!projects.length) return projectDialog(organizations);
  const name = h("input", { required: true, maxlength: 200 });
  const project = select(projects.filter((p) => !p.archived_at).map((p) => [p.id, p.name]), projects[0].id);
  const models = h("input", { placeholder: "every model" });
  const addresses = h("input", { placeholder: "anywhere" });
  const days = h("input", { type: "number", min: 1, max: 3650, placeholder: "never" });
  const limits = limitsForm([]);
  const list = (input) => input.value.split(/[,\s]+/).filter(Boolean);
  const box = dialog("Issue a key",
    field("Name", name, "What or who it is for"), field("Project", project), limits.element,
    field("Models", models, "Names with commas between them"), field("Addresses", addresses, "CIDR networks, for example 10.0.0.0/8"),
    field("Expires after days", days),
    button("Issue", async () => {
      if (!name.value.trim()) return name.focus();
      const issued = await send("POST", "/admin/keys", {
        name: name.value.trim(), project_id: project.value, limits: limits.text(), ip_ranges: list(addresses),
        models: list(models).length ? list(models) : null,
        expires_in_seconds: days.value ? Number(days.value) * 86400 : null,
      });
      box.close();
      await shownOnce(session, issued);
    }, "main"));
  name.focus();
}

// A name for the snippet: one that this key may use, else one that is served or was asked for.
async function findModel(session, issued) {
  if (issued.models?.length) return issued.models[0];
  const found = session.role === "operator" ? (await get("/admin/routes")).data.map((route) => route.model)
    : (await get("/admin/breakdown", { start_time: Math.floor(Date.now() / 3600000) * 3600 - 604800, by: "model", top: 1 })).lines.map((line) => line.name);
  return found[0] || "simulator";
}

async function shownOnce(session, issued) {
  const base = session.gateway_url;
  const model = await findModel(session, issued).catch(() => "simulator");
  const snippet = `from openai import OpenAI

client = OpenAI(base_url="${base}/v1", api_key="${issued.value}")
answer = client.chat.completions.create(model=${JSON.stringify(model)}, messages=[{"role": "user", "content": "Hello!"}])
print(answer.choices[0].message.content)`;
  const copy = (text) => button("Copy", async () => {
    await navigator.clipboard.writeText(text);
    notify("Copied.");
  });
  const box = dialog("The key, shown this once",
    h("p", {}, "Keep it now: it cannot be shown again. Whoever has it can spend."),
    h("pre", { class: "value" }, issued.value), copy(issued.value),
    h("p", {}, "Use it with the official SDK:"), h("pre", {}, snippet), copy(snippet));
  box.addEventListener("close", () => window.dispatchEvent(new Event("hashchange")));
}

function projectDialog(organizations) {
  const name = h("input", { required: true, maxlength: 200 });
  const organization = select(organizations.map((o) => [o.id, o.name]), organizations[0]?.id);
  const box = dialog("New project", field("Name", name), organizations.length > 1 && field("Organization", organization), button("Create", async () => {
    if (!name.value.trim()) return name.focus();
    await send("POST", "/admin/projects", { organization_id: organization.value, name: name.value.trim() });
    box.close();
    window.dispatchEvent(new Event("hashchange"));
  }, "main"));
  name.focus();
}

export async function limitsDialog(scope, id, name) {
  const found = await get("/admin/limits", { scope, scope_id: id });
  const form = limitsForm(found.limits);
  const box = dialog(`Limits of '${name}'`, form.element, button("Set these limits", async () => {
    await send("PUT", "/admin/limits", { scope, scope_id: id, limits: form.text() });
    box.close();
    notify("The limits are set; they bind from the next request on.");
    window.dispatchEvent(new Event("hashchange"));
  }, "main"));
}
