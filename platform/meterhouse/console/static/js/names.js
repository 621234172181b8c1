// What projects, keys and organizations are called, beside their ids.

import { get } from "./api.js";

const PLACES = { project: "/v1/organization/projects", key: "/admin/keys", organization: "/admin/organizations" };
const MOST_PAGES = 10;
const known = new Map();

// Asks for the names that are not known yet; what has none is shown by its id.
export async function loadNames(kind, ids) {
  if (kind === "project") {
    if (ids.every((id) => known.has(id))) return { of };
    (await listProjects()).forEach((one) => known.set(one.id, one.name));
    ids.filter((id) => !known.has(id)).forEach((id) => known.set(id, id));
  } else if (kind in PLACES) {
    await Promise.all([...new Set(ids)].filter((id) => !known.has(id)).map(async (id) => {
      const found = await get(`${PLACES[kind]}/${encodeURIComponent(id)}`).catch(() => null);
      known.set(id, found?.name ?? id);
    }));
  }
  return { of };
}

const of = (id) => known.get(id) ?? id;

// The first thousand, the oldest first.
export async function listProjects() {
  const projects = [];
  for (let page = 0, after = null; page < MOST_PAGES; page += 1) {
    const found = await get("/admin/projects", { limit: 100, after });
    projects.push(...found.data);
    if (!found.has_more) break;
    after = found.last_id;
  }
  return projects;
}
