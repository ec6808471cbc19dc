// The HTTP API as functions. A refusal is a `Problem` with the server's code and sentence; no answer is a `Problem` too,
// with the code "unreachable".

const KEPT = "elwift.token";

export function token() {
  return sessionStorage.getItem(KEPT);
}

export function keepToken(text) {
  sessionStorage.setItem(KEPT, text.trim());
}

/** Takes a token out of the address (#token=…), so that it stays in no history and no bookmark. */
export function tokenFromAddress() {
  const found = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!found) return;
  keepToken(found);
  history.replaceState(null, "", location.pathname + location.search);
}

export class Problem extends Error {
  constructor({ status = 0, code = "unreachable", detail, details = [], retry_after = null } = {}) {
    super(detail ?? "The server cannot be reached.");
    Object.assign(this, { status, code, details, retryAfter: retry_after });
  }
}

export async function call(method, path, { body, headers = {}, signal } = {}) {
  const sent = { Accept: "application/json", ...headers };
  if (token()) sent.Authorization = `Bearer ${token()}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers: sent, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem();
  }
  const document = await response.json().catch(() => ({}));
  if (!response.ok) throw new Problem({ code: "refused", detail: response.statusText, ...document, status: response.status });
  return document;
}

export const get = (path, options) => call("GET", path, options);
export const post = (path, body, headers) => call("POST", path, { body, headers });
