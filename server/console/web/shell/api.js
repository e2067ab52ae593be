/** The HTTP API under /api/operator: JSON in and out, one kind of error, the CSRF token kept up to date. */

const PREFIX = "/api/operator";
const PATIENCE = 30_000;

/**
 * status 0: the server was not reached. code and message: as the server gave them, fit to be shown. problems: of an
 * uploaded file, [{line, reason}]. fields: of a form whose values are wrong, [{field, message}].
 */
export class ApiError extends Error {
  constructor(status, code, message, retryAfter = null) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
    this.problems = [];
    this.fields = [];
  }
}

/** `path` with its query; values that are null, undefined or "" are left out. */
export function address(path, query = {}) {
  const pairs = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const words = new URLSearchParams(pairs.map(([key, value]) => [key, String(value)])).toString();
  return `${PREFIX}${path}${words && `?${words}`}`;
}

export class Api {
  #csrf = "";
  #fetch;
  #onSignedOut;

  /** onSignedOut: called when the server does not know who we are (any more). */
  constructor({ fetch = (...request) => window.fetch(...request), onSignedOut = () => {} } = {}) {
    this.#fetch = fetch;
    this.#onSignedOut = onSignedOut;
  }

  /** Who is signed in: {id, name, role}. */
  async me() {
    const { operator, csrf } = await this.get("/me");
    this.#csrf = csrf;
    return operator;
  }

  get(path, query, options) {
    return this.#ask("GET", address(path, query), undefined, options);
  }

  post(path, body, options) {
    return this.#ask("POST", address(path), body, options);
  }

  put(path, body, options) {
    return this.#ask("PUT", address(path), body, options);
  }

  patch(path, body, options) {
    return this.#ask("PATCH", address(path), body, options);
  }

  delete(path, options, body) {
    return this.#ask("DELETE", address(path), body, options);
  }

  async #ask(method, url, body, { signal = null, keepalive = false } = {}, again = true) {
    const response = await this.#send(method, url, body, signal, keepalive);
    if (response.ok) return response.status === 204 ? null : await parsed(response);
    const error = await errorOf(response);
    if (error.status === 401) this.#onSignedOut();
    // Who signed in anew in another tab has a new token; this tab learns it and tries once more.
    if (error.status === 403 && method !== "GET" && again && (await this.#renewed())) {
      return this.#ask(method, url, body, { signal, keepalive }, false);
    }
    throw error;
  }

  async #send(method, url, body, signal, keepalive) {
    const headers = { accept: "application/json" };
    if (method !== "GET") headers["x-csrf-token"] = this.#csrf;
    const raw = body instanceof Blob;
    if (body !== undefined && !raw) headers["content-type"] = "application/json";
    const signals = [signal, raw ? null : AbortSignal.timeout(PATIENCE)].filter(Boolean);
    const request = {
      method,
      headers,
      keepalive,
      credentials: "same-origin",
      body: body === undefined || raw ? body : JSON.stringify(body),
      signal: signals.length > 0 ? AbortSignal.any(signals) : null,
    };
    try {
      return await this.#fetch(url, request);
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ApiError(0, "unreachable", "The server does not answer. Check the connection and try again.");
    }
  }

  async #renewed() {
    const before = this.#csrf;
    await this.me();
    return this.#csrf !== before;
  }
}

async function parsed(response) {
  try {
    return await response.json();
  } catch {
    throw new ApiError(response.status, "unreadable", "The server's answer could not be read.");
  }
}

async function errorOf(response) {
  let told = {};
  let problems = [];
  try {
    ({ error: told = {}, problems = [] } = await response.json());
  } catch {
    // Not ours: a proxy's page, or cut off.
  }
  const message = typeof told.message === "string" ? told.message : `The server answered with an error (${response.status}).`;
  const error = new ApiError(response.status, told.code ?? "error", message, response.headers.get("retry-after"));
  error.problems = problems;
  error.fields = told.fields ?? [];
  return error;
}

/** Whether this only says that we gave up on the request ourselves. */
export function aborted(error) {
  return error?.name === "AbortError";
}

/** An error as a sentence for people: begins with a capital, ends with a stop. */
export function sentence(error) {
  const words = String(error?.message || "Something went wrong");
  const begun = words.charAt(0).toUpperCase() + words.slice(1);
  return /[.!?…]$/.test(begun) ? begun : `${begun}.`;
}
