/**
 * What the browser keeps: conversations and settings, in localStorage, one entry each.
 *
 * Storage may be forbidden or full. Then everything goes on in memory, and `onTrouble` hears of it.
 */

/**
 * @typedef {"writing" | "stopped" | "failed" | "interrupted"} State of an answer that is not whole
 * @typedef {{role: "user" | "assistant", content: string, state?: State,
 *   error?: string, code?: string | null, finish?: string, model?: string,
 *   guard?: import("./api.js").Guard, usage?: import("./api.js").Usage,
 *   first_ms?: number, speed?: number}} Message
 * @typedef {{id: string, title: string, named: boolean, created: number, updated: number,
 *   model: string, system: string, messages: Message[]}} Conversation
 */

const PREFIX = "puna.chat.";
const SETTINGS = "puna.settings";
const CURRENT = "puna.current";
const FORMAT = "puna-conversations";
const TITLE_LENGTH = 60;
const FULL =
  "This browser's storage is full, so new messages are not kept. " +
  "Export, then delete some conversations.";
const FORBIDDEN =
  "This browser does not let the page keep anything: conversations are lost when you leave.";

/** @type {Map<string, Conversation>} */
const conversations = new Map();

/** @type {(message: string) => void} */
let tell = () => {};
/** @type {(id: string) => void} */
let tellChange = () => {};

/**
 * Say who hears that something could not be kept; "" means that it can again.
 * @param {(message: string) => void} listener
 */
export function onTrouble(listener) {
  tell = listener;
}

/**
 * Say who hears that another tab changed a conversation.
 * @param {(id: string) => void} listener
 */
export function onOtherTab(listener) {
  tellChange = listener;
}

/** Run something on the storage; a failure is told, and the page goes on. */
function onStorage(work, otherwise) {
  try {
    return work(localStorage);
  } catch (error) {
    tell(error.name === "QuotaExceededError" ? FULL : FORBIDDEN);
    return otherwise;
  }
}

/** Read every conversation that this browser keeps. */
export function load() {
  const names = onStorage((storage) => Object.keys(storage), []);
  for (const name of names.filter((each) => each.startsWith(PREFIX))) read(name);
  window.addEventListener("storage", ({ key }) => {
    if (!key?.startsWith(PREFIX)) return;
    read(key);
    tellChange(key.slice(PREFIX.length));
  });
}

/** Take one entry over; one that is damaged or gone is no conversation. */
function read(name) {
  const text = onStorage((storage) => storage.getItem(name), null);
  const found = text === null ? null : parsed(text);
  if (found) conversations.set(found.id, found);
  else conversations.delete(name.slice(PREFIX.length));
}

function parsed(text) {
  try {
    return checked(JSON.parse(text));
  } catch {
    return null;
  }
}

/** A conversation with known fields only, or null: what is read may come from anywhere. */
function checked(value) {
  if (typeof value?.id !== "string" || !Array.isArray(value.messages)) return null;
  const isMessage = ({ role, content } = {}) =>
    (role === "user" || role === "assistant") && typeof content === "string";
  if (!value.messages.every((message) => message && isMessage(message))) return null;
  // Whoever wrote on it is gone, or is another tab, which will say more.
  for (const message of value.messages) {
    if (message.state === "writing") message.state = "interrupted";
  }
  const time = (stamp) => (Number.isFinite(stamp) ? stamp : Date.now());
  return {
    id: value.id,
    title: String(value.title ?? "Conversation").slice(0, 200),
    named: value.named === true,
    created: time(value.created),
    updated: time(value.updated),
    model: String(value.model ?? ""),
    system: String(value.system ?? ""),
    messages: value.messages,
  };
}

/** @returns {Conversation[]} the last used first */
export function all() {
  return [...conversations.values()].sort((one, other) => other.updated - one.updated);
}

/**
 * @param {string} id
 * @returns {Conversation | undefined}
 */
export function get(id) {
  return conversations.get(id);
}

/**
 * A conversation that is not kept before its first message.
 * @param {{model: string, system: string}} start
 * @returns {Conversation}
 */
export function create({ model, system }) {
  const now = Date.now();
  const id = [...crypto.getRandomValues(new Uint8Array(12))]
    .map((byte) => byte.toString(16).padStart(2, "0"))
    .join("");
  const title = "New conversation";
  return { id, title, named: false, created: now, updated: now, model, system, messages: [] };
}

/**
 * Keep a conversation as it is now.
 * @param {Conversation} conversation
 * @param {{touch?: boolean}} [options] touch: it was used now
 */
export function save(conversation, { touch = false } = {}) {
  if (touch) conversation.updated = Date.now();
  const first = conversation.messages.find((message) => message.role === "user");
  if (first && !conversation.named) conversation.title = titleOf(first.content);
  conversations.set(conversation.id, conversation);
  const kept = onStorage((storage) => {
    storage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    return true;
  }, false);
  if (kept) tell("");
}

function titleOf(question) {
  const line = question.trim().split("\n")[0].replace(/\s+/g, " ");
  return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH - 1).trimEnd()}…` : line;
}

/**
 * Forget a conversation.
 * @param {string} id
 */
export function remove(id) {
  conversations.delete(id);
  onStorage((storage) => storage.removeItem(PREFIX + id), undefined);
}

/**
 * Conversations with all words of a query in their title or messages, the last used first.
 * @param {string} query
 * @returns {Conversation[]}
 */
export function search(query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  return all().filter((conversation) => {
    const texts = conversation.messages.map((message) => message.content);
    const text = [conversation.title, ...texts].join("\n").toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

/** @returns {string} every conversation, as JSON for `importText` */
export function exportText() {
  return JSON.stringify({ format: FORMAT, version: 1, conversations: all() }, null, 1);
}

/**
 * Take over what `exportText` wrote; of two versions of a conversation the later one stays.
 * @param {string} text
 * @returns {{taken: number, known: number}}
 * @throws {Error} when it is no such file
 */
export function importText(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    file = null;
  }
  if (file?.format !== FORMAT || !Array.isArray(file.conversations)) {
    throw new Error("This is no file of exported conversations.");
  }
  const found = file.conversations.map(checked);
  if (found.includes(null)) throw new Error("The file is damaged: nothing was imported.");
  const fresh = found.filter((one) => one.updated > (conversations.get(one.id)?.updated ?? -1));
  fresh.forEach((conversation) => save(conversation));
  return { taken: fresh.length, known: found.length - fresh.length };
}

/** @returns {object} what `saveSettings` kept, or {} */
export function loadSettings() {
  const text = onStorage((storage) => storage.getItem(SETTINGS), null);
  try {
    return JSON.parse(text ?? "{}") ?? {};
  } catch {
    return {};
  }
}

/** @param {object} settings */
export function saveSettings(settings) {
  onStorage((storage) => storage.setItem(SETTINGS, JSON.stringify(settings)), undefined);
}

/** @returns {Conversation | undefined} the one that was open */
export function lastOpen() {
  return conversations.get(onStorage((storage) => storage.getItem(CURRENT), null) ?? "");
}

/** @param {string} id of the one that is open */
export function keepOpen(id) {
  onStorage((storage) => storage.setItem(CURRENT, id), undefined);
}
