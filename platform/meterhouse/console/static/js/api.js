// Asks the gateway's public API, through the console's own server, which has the secret.

let formToken = "";
let waiting = 0;
let bar = null;

export class ApiError extends Error {
  constructor(status, message, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export function setSession(session) {
  formToken = session?.form_token ?? "";
}

// A bar appears when something takes longer than a moment.
async function watched(work) {
  waiting += 1;
  const timer = setTimeout(() => {
    if (!bar) {
      bar = document.createElement("div");
      bar.className = "progress";
      bar.setAttribute("role", "progressbar");
      bar.setAttribute("aria-label", "Loading");
      document.body.append(bar);
    }
  }, 80);
  try {
    return await work();
  } finally {
    clearTimeout(timer);
    waiting -= 1;
    if (!waiting && bar) {
      bar.remove();
      bar = null;
    }
  }
}

// What a page asks for by itself keeps nobody signed in: only somebody who is there does.
const PRESENT_MS = 60000;
let touchedAt = Date.now();
for (const kind of ["pointerdown", "pointermove", "keydown", "wheel", "touchstart"]) {
  document.addEventListener(kind, () => (touchedAt = Date.now()), { passive: true, capture: true });
}

async function ask(url, method, body, signal) {
  const headers = { "x-form-token": formToken };
  if (method === "GET" && Date.now() - touchedAt > PRESENT_MS) headers["x-background"] = "1";
  const isText = typeof body === "string";
  if (body !== undefined) headers["content-type"] = isText ? "application/x-ndjson" : "application/json";
  let answer;
  try {
    answer = await fetch(url, { method, headers, signal, body: body === undefined || isText ? body : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The console's own server cannot be reached. Is it still running?");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => null);
  const error = new ApiError(answer.status, told?.error?.message ?? `The gateway answered with ${answer.status}.`, told?.error?.code);
  if (answer.status === 401 && url.startsWith("/api/")) document.dispatchEvent(new CustomEvent("session-ended"));
  throw error;
}

export const call = (url, method = "GET", body = undefined) =>
  watched(async () => {
    const answer = await ask(url, method, body);
    return answer.status === 204 ? null : answer.json();
  });

export function query(path, parameters = {}) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") search.append(name, one);
    }
  }
  const text = search.toString();
  return `/api${path}${text ? `?${text}` : ""}`;
}

export const text = (path, parameters) => watched(async () => (await ask(query(path, parameters), "GET")).text());
export const get = (path, parameters) => call(query(path, parameters));
export const send = (method, path, body) => call(query(path), method, body);

// Gives the data of each server-sent event until the signal says stop; throws when the stream breaks.
export async function* events(path, { method = "GET", body, signal, parameters, begun = () => {} } = {}) {
  const answer = await ask(query(path, parameters), method, body, signal);
  begun(answer.headers.get("x-request-id"));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
      if (data.length) yield data.join("\n");
    }
  }
}
