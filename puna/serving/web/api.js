/** Talking to the server: models, streamed answers, Markdown, figures; errors in clear words. */

const KEY_NAME = "puna.key";

/** What the server answered instead of what was asked, or that it did not answer. */
export class ApiError extends Error {
  /**
   * @param {string} message for the user
   * @param {{status?: number, code?: string | null, guard?: Guard | null}} [details]
   */
  constructor(message, { status = 0, code = null, guard = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.guard = guard;
  }
}

/**
 * @typedef {{decision: "allow" | "warn" | "block", reason?: string}} Guard
 * @typedef {{text?: string, finish?: string, guard?: Guard, usage?: Usage}} Piece
 * @typedef {{prompt_tokens: number, completion_tokens: number, cached_tokens?: number}} Usage
 */

/** @returns {string} the API key of this tab, or "" */
export function apiKey() {
  try {
    return sessionStorage.getItem(KEY_NAME) ?? "";
  } catch {
    return memoryKey;
  }
}

let memoryKey = "";

/**
 * Keep a key for as long as this tab is open; "" forgets it.
 * @param {string} key
 */
export function keepApiKey(key) {
  memoryKey = key;
  try {
    if (key) sessionStorage.setItem(KEY_NAME, key);
    else sessionStorage.removeItem(KEY_NAME);
  } catch {
    // Storage is forbidden here: the key lives as long as the page.
  }
}

/** @type {(reason: string) => Promise<boolean>} */
let askForKey = () => Promise.resolve(false);

/**
 * Say who asks the user for a key when the server wants one.
 * @param {(reason: string) => Promise<boolean>} ask resolves to whether a key was given
 */
export function onKeyWanted(ask) {
  askForKey = ask;
}

/**
 * Ask the server; asks the user for a key when it wants one, and tries again with it.
 * @param {string} path
 * @param {{body?: object, signal?: AbortSignal}} [options]
 * @returns {Promise<Response>} a good one
 * @throws {ApiError}
 */
async function request(path, { body, signal } = {}) {
  for (;;) {
    const response = await attempt(path, body, signal);
    if (response.ok) return response;
    const error = await errorOf(response);
    if (response.status !== 401 || !(await askForKey(error.message))) throw error;
  }
}

/** One try, with the key of this tab. */
async function attempt(path, body, signal) {
  const headers = {};
  if (body) headers["Content-Type"] = "application/json";
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  const method = body ? "POST" : "GET";
  try {
    return await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is it still running?");
  }
}

/** What a refusal means, in words. */
async function errorOf(response) {
  let error = {};
  try {
    const answer = await response.json();
    error = answer.error ?? answer;
  } catch {
    // A proxy's page, or nothing: the status has to do.
  }
  const message = error.message ?? `The server answered with status ${response.status}.`;
  const { status } = response;
  // The message says why: the guard's part is that it refused.
  const guard = error.code === "content_blocked" ? { decision: "block" } : null;
  const details = { status, code: error.code ?? null, guard };
  return new ApiError(withAdvice(message, details, response.headers.get("Retry-After")), details);
}

function withAdvice(message, { status, code }, retryAfter) {
  if (code === "context_length_exceeded") {
    return `This conversation has outgrown the model's memory. ${message}`;
  }
  if (status === 429 || status === 503) {
    const when = retryAfter ? `in ${retryAfter} s` : "in a moment";
    return `The server is busy: try again ${when}. ${message}`;
  }
  return message;
}

/** @returns {Promise<string[]>} names of the models that answer here */
export async function models() {
  const answer = await (await request("/v1/models")).json();
  return answer.data.map((model) => model.id);
}

/**
 * HTML of Markdown texts, safe to insert.
 * @param {string[]} texts
 * @returns {Promise<string[]>}
 */
export async function markdown(texts) {
  return (await (await request("/ui/markdown", { body: { texts } })).json()).html;
}

/** @returns {Promise<any>} the figures of the dashboard */
export async function figures() {
  return (await request("/stats/data")).json();
}

/**
 * An answer as it is written.
 * @param {object} body of `/v1/chat/completions`
 * @param {AbortSignal} signal ends it, on the server too
 * @returns {AsyncGenerator<Piece>}
 * @throws {ApiError} also when the connection is lost half-way
 */
export async function* streamChat(body, signal) {
  const options = { stream: true, stream_options: { include_usage: true } };
  const response = await request("/v1/chat/completions", { body: { ...body, ...options }, signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    yield piece(JSON.parse(data));
  }
  throw new ApiError("The connection was lost before the answer was complete.");
}

/** What a chunk brings; throws what it says went wrong. */
function piece(chunk) {
  if (chunk.error) {
    const { message, code = null } = chunk.error;
    throw new ApiError(message ?? "The model failed.", { code });
  }
  const choice = chunk.choices?.[0];
  const usage = chunk.usage ?? undefined;
  return {
    text: choice?.delta?.content ?? undefined,
    finish: choice?.finish_reason ?? undefined,
    guard: choice?.puna?.guard ?? undefined,
    usage: usage && { ...usage, cached_tokens: usage.prompt_tokens_details?.cached_tokens ?? 0 },
  };
}

/**
 * The data of server-sent events.
 * @param {ReadableStream<Uint8Array>} stream
 * @returns {AsyncGenerator<string>}
 */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop() ?? "";
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The connection was lost before the answer was complete.");
  } finally {
    reader.releaseLock();
  }
}
