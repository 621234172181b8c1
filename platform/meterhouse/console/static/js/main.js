// The shell: sign-in, navigation, and which page is shown.

import { call, setSession } from "./api.js";
import { field, h, notify, select, show } from "./dom.js";
import { keysPage } from "./keys.js";
import { ledgerPage } from "./ledger.js";
import { livePage } from "./live.js";
import { overviewPage } from "./overview.js";
import { playgroundPage } from "./playground.js";
import { supplyPage } from "./supply.js";
import { minePage } from "./mine.js";

const LIVE = ["live", "Live", livePage];
const LOOKING = [["overview", "Overview", overviewPage], ["keys", "Keys and limits", keysPage], LIVE];
const LEDGER = ["ledger", "Ledger", ledgerPage];
const PAGES = {
  operator: [...LOOKING, ["supply", "Providers", supplyPage], LEDGER],
  owner: [...LOOKING, LEDGER],
  reader: [...LOOKING, LEDGER],
  tenant: [["mine", "My limits", minePage], ["playground", "Playground", playgroundPage], LIVE],
};

const ROLES = { operator: "Signed in as operator", owner: "Signed in as owner", reader: "Signed in as reader: you may look", tenant: "Signed in with a key" };

const app = document.getElementById("app");
let session = null;
let stop = () => {};

document.documentElement.dataset.theme = localStorage.getItem("theme") ?? "";

function signInPage(message = "") {
  stop();
  session = null;
  setSession(null);
  document.title = "Sign in – Meterhouse";
  const secret = h("input", { type: "password", name: "secret", autocomplete: "off", required: true, autofocus: true, size: 40 });
  const error = h("p", { class: "error", role: "alert" }, message);
  const go = h("button", { class: "main" }, "Sign in");
  const form = h("form", { onsubmit: async (event) => {
    event.preventDefault();
    go.disabled = true;
    try {
      begin(await call("/session", "POST", { secret: secret.value }));
    } catch (failure) {
      show(error, failure.message);
      secret.select();
    } finally {
      go.disabled = false;
    }
  } },
  h("div", { class: "brand" }, h("img", { src: "/static/icon.svg", alt: "" }), h("span", {}, "Meterhouse")),
  field("Admin key, operator's token, or a tenant's key", secret, "It stays on the console's server; the browser does not keep it."),
  error, h("div", { class: "row" }, go));
  show(app, h("main", { class: "sign-in", id: "content" }, h("div", { class: "card" }, form)));
  secret.focus();
}

function begin(opened) {
  session = opened;
  setSession(session);
  if (!PAGES[session.role].some(([name]) => name === here().name)) location.hash = `#/${PAGES[session.role][0][0]}`;
  render();
}

function here() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  return { name, rest: rest.map(decodeURIComponent) };
}

async function render() {
  if (!session) return;
  stop();
  const isLater = app.querySelector("nav") !== null;
  const pages = PAGES[session.role];
  const { name, rest } = here();
  const [, title, page] = pages.find(([known]) => known === name) ?? pages[0];
  document.title = `${title} – Meterhouse`;
  const content = h("main", { id: "content", tabindex: -1 }, h("p", { class: "busy", role: "status" }, "Loading"));
  show(app, h("div", { class: "shell" }, sidebar(pages, title), content));
  const abort = new AbortController();
  stop = () => abort.abort();
  try {
    const parts = await page({ session, rest, signal: abort.signal });
    if (!abort.signal.aborted) show(content, parts);
    // Whoever came by keyboard goes on in the page, and need not walk through the menu again.
    if (isLater && !abort.signal.aborted) content.focus({ preventScroll: true });
  } catch (error) {
    if (abort.signal.aborted) return;
    show(content, h("h1", {}, title), h("p", { class: "error", role: "alert" }, error.message),
      h("button", { type: "button", onclick: render }, "Try again"));
  }
}

function sidebar(pages, title) {
  const theme = select([["", "As the system"], ["light", "Light"], ["dark", "Dark"]], localStorage.getItem("theme") ?? "", (value) => {
    localStorage.setItem("theme", value);
    document.documentElement.dataset.theme = value;
  });
  theme.setAttribute("aria-label", "Colours");
  return h("nav", { class: "side", "aria-label": "Pages" },
    h("div", { class: "brand" }, h("img", { src: "/static/icon.svg", alt: "" }), h("span", {}, "Meterhouse")),
    pages.map(([name, text]) => h("a", { href: `#/${name}`, "aria-current": text === title ? "page" : null }, text)),
    h("div", { class: "foot" }, h("span", { class: "where" }, session.gateway_url), theme,
      h("span", { class: "who hint" }, ROLES[session.role]), h("button", { type: "button", onclick: signOut }, "Sign out")));
}

async function signOut() {
  try {
    await call("/session", "DELETE");
  } catch (error) {
    notify(error.message, true);
  }
  signInPage();
}

window.addEventListener("hashchange", render);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("content")?.focus();
});
document.addEventListener("session-ended", () => session && signInPage("Your session has ended. Sign in again."));

call("/session").then(begin, () => signInPage());
