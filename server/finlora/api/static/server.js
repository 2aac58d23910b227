// Calls to the server that sent this page: JSON, server-sent events, errors a person can act on.

const KEY = "finlora.key";
const NUM_TRIES = 20;
const TRY_AGAIN_MS = 1000;

/** The server answered with an error. */
export class ServerError extends Error {
  constructor(status, code, message, retryAfterSeconds) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

/** The server did not answer. */
export class GoneError extends Error {
  constructor() {
    super("the server cannot be reached");
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

/** Remember the key until the tab is closed; an empty one is forgotten. */
export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** The JSON answer to a GET. Raises ServerError, GoneError. */
export async function get(path) {
  const response = await send(path);
  return response.json();
}

/** The JSON answer to a POST; while the server is busy it is asked again. Raises as `get`. */
export async function post(path, body, signal) {
  const response = await patiently(() => send(path, body, signal), isBusy, signal);
  return response.json();
}

/** The answer to a GET as text. */
export async function text(path, accept) {
  const response = await send(path, undefined, undefined, { Accept: accept });
  return response.text();
}

/** The events of a stream, parsed. Raises ServerError for an error in the middle, too. */
export async function* events(path, body, signal) {
  const response = await patiently(() => send(path, body, signal), isBusy, signal);
  for await (const data of frames(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ServerError(200, event.error.code, event.error.message);
    yield event;
  }
  throw new GoneError();
}

/** What an attempt gives; it is repeated after errors that may pass, as long as that is sensible. */
export async function patiently(attempt, mayPass, signal) {
  for (let left = NUM_TRIES; ; left -= 1) {
    try {
      return await attempt();
    } catch (error) {
      if (!mayPass(error) || left <= 1) throw error;
      await pause((error.retryAfterSeconds ?? 0) * 1000 || TRY_AGAIN_MS, signal);
    }
  }
}

const isBusy = (error) => error.status === 503;

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    });
  });
}

async function* frames(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch(rethrow);
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) yield part.replace(/^data: /, "");
  }
}

async function send(path, body, signal, headers = {}) {
  const options = { headers: { ...headers, ...authorization() }, signal };
  if (body !== undefined) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
  const response = await fetch(new URL(path, document.baseURI), options).catch(rethrow);
  if (!response.ok) throw await errorOf(response);
  return response;
}

function authorization() {
  const key = sessionStorage.getItem(KEY);
  if (key === null) return {};
  // A header holds bytes: those of the key in UTF-8.
  const bytes = String.fromCharCode(...new TextEncoder().encode(key));
  return { Authorization: `Bearer ${bytes}` };
}

async function errorOf(response) {
  const { error } = await response.json().catch(() => ({}));
  const message = error?.message ?? `the server answered ${response.status}`;
  const retryAfter = Number(response.headers.get("Retry-After")) || undefined;
  return new ServerError(response.status, error?.code, message, retryAfter);
}

function rethrow(error) {
  if (error.name === "AbortError") throw error;
  throw new GoneError();
}
