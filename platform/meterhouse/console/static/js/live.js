// Requests as they run: from `/admin/live` or, for a tenant's key, `/v1/live`.

import { events } from "./api.js";
import { duration, h, number, select, show, table, tag, usd } from "./dom.js";
import { openReceipt } from "./receipt.js";

const MOST_ROWS = 200;

export async function livePage({ session, signal }) {
  const rows = new Map();
  const list = h("div", {});
  const status = h("p", { class: "lead", role: "status" }, "Connecting");
  let filter = "";
  let state = "";
  let isPaused = false;
  let isDirty = true;
  const search = h("input", { type: "search", placeholder: "model, project, key or id", "aria-label": "Filter",
    oninput: (event) => {
      filter = event.target.value.trim().toLowerCase();
      isDirty = true;
    } });
  const states = select([["", "All"], ["running", "Running"], ["ended", "Ended"], ["failed", "Not completed"]], "", (value) => {
    state = value;
    isDirty = true;
  });
  states.setAttribute("aria-label", "State");
  const pause = h("button", { type: "button", "aria-pressed": "false", onclick: () => {
    isPaused = !isPaused;
    pause.setAttribute("aria-pressed", String(isPaused));
    show(pause, isPaused ? "Go on" : "Pause");
    isDirty = true;
  } }, "Pause");
  const draw = () => {
    if (isDirty && !isPaused) {
      isDirty = false;
      const found = [...rows.values()].reverse().filter((row) => isWanted(row, state) && (!filter || haystack(row).includes(filter)));
      const focused = list.contains(document.activeElement) ? document.activeElement.dataset.id : null;
      show(list, table(COLUMNS, found.slice(0, MOST_ROWS), {
        empty: filter || state ? "No request matches." : "Nothing runs at the moment. Requests appear here as they begin.",
        open: (row) => openReceipt(session, row.request_id),
        id: (row) => row.request_id,
      }));
      if (focused) [...list.querySelectorAll("tr[data-id]")].find((row) => row.dataset.id === focused)?.focus({ preventScroll: true });
    }
  };
  const timer = setInterval(draw, 200);
  signal.addEventListener("abort", () => clearInterval(timer));
  listen(session, signal, status, (event) => {
    note(rows, event);
    isDirty = true;
  });
  draw();
  return [h("h1", {}, "Live"), status, h("div", { class: "row" }, search, states, pause), h("div", { class: "card" }, list)];
}

async function listen(session, signal, status, take) {
  for (let wait = 1000; !signal.aborted; wait = Math.min(wait * 2, 10000)) {
    try {
      const path = session.role === "tenant" ? "/v1/live" : "/admin/live";
      show(status, "Requests appear as they begin. Click one for its receipt.");
      for await (const data of events(path, { signal })) {
        wait = 1000;
        take(JSON.parse(data));
      }
    } catch (error) {
      if (signal.aborted) return;
      show(status, `${error.message} Trying again.`);
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

function note(rows, event) {
  if (!event.request_id) return;
  const row = { ...(rows.get(event.request_id) ?? {}), ...event };
  if (event.type === "request.finished") row.isOver = true;
  rows.set(event.request_id, row);
  while (rows.size > 4 * MOST_ROWS) rows.delete(rows.keys().next().value);
}

function isWanted(row, state) {
  if (!state) return true;
  if (state === "running") return !row.isOver;
  return state === "ended" ? row.isOver : row.isOver && row.outcome !== "completed";
}

const haystack = (row) => [row.model, row.project_id, row.key_id, row.request_id, row.provider, row.outcome].join(" ").toLowerCase();

function outcome(row) {
  if (!row.isOver) return tag("running", "warn");
  const text = row.outcome ?? (row.status ? String(row.status) : "ended");
  return tag(text, text === "completed" ? "good" : "bad");
}

// While it runs it is what an end now would be charged, by what was counted so far.
function cost(row) {
  if (row.charge_nanos === undefined) return "–";
  return row.isOver ? usd(row.charge_nanos) : `about ${usd(row.charge_nanos)}`;
}

const COLUMNS = [
  { title: "Request", cell: (row) => h("code", {}, row.request_id.slice(-10)) },
  { title: "Model", cell: (row) => row.model ?? "–" },
  { title: "Project", cell: (row) => h("code", {}, row.project_id ?? "–") },
  { title: "Provider", cell: (row) => row.provider || "–" },
  { title: "State", cell: outcome },
  { title: "Tokens", number: true, cell: (row) => number(row.output_tokens) },
  { title: "Tokens/s", number: true, cell: (row) => (row.tokens_per_second ? row.tokens_per_second.toFixed(1) : "–") },
  { title: "First token", number: true, cell: (row) => duration(row.time_to_first_token_ms) },
  { title: "Time", number: true, cell: (row) => duration(row.duration_ms ?? row.elapsed_ms) },
  { title: "Cost", number: true, cell: cost },
];
