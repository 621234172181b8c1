// Limits of spend of organizations, projects and keys, and where they stand.

import { get } from "./api.js";
import { button, h, show, tag } from "./dom.js";
import { standing } from "./limits.js";

const PAGE = 6;
const MOST = 100;
const PERIODS = { day: "today", month: "this month", total: "in all" };

export function budgetsCard() {
  const list = h("div", {});
  const element = h("div", { class: "card" }, h("h2", {}, "Budgets"), list);
  let wanted = PAGE;
  const load = async () => {
    const page = await get("/admin/budgets", { limit: wanted });
    show(list, page.data.length ? h("div", { class: "columns" }, page.data.map(budget)) : empty(), page.has_more ? more() : null);
  };
  const more = () =>
    wanted < MOST
      ? button("More budgets", async () => {
        wanted = Math.min(MOST, wanted * 4);
        await load();
      })
      : h("p", { class: "hint" }, `These are the first ${MOST}; a key's own page shows every limit that binds it.`);
  return { element, load: () => load().catch((error) => show(list, h("p", { class: "error" }, error.message))) };
}

function empty() {
  return h("p", { class: "empty" }, "No budget is set. Give a project one under ", h("a", { href: "#/keys" }, "Keys and limits"),
    ", for example $25 per month: beyond it requests are refused.");
}

function budget(found) {
  const title = found.id === "credit" ? "Prepaid credit" : found.name;
  return h("div", { class: "limit" },
    h("div", {}, h("strong", {}, title), " ", tag(found.scope), " ",
      h("span", { class: "hint" }, PERIODS[found.window], found.model ? ` for ${found.model}` : "")),
    standing(found));
}
