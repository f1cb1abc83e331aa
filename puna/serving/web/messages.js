/** How a message looks, and what can be done with it. */

import { copyText, element, flashCopied, icon, iconButton } from "./dom.js";

/**
 * @typedef {import("./store.js").Message} Message
 * @typedef {{retry: () => void, edit: (index: number, text: string) => void,
 *   startOver: () => void}} Actions
 */

/**
 * The article of a message. The text of an answer is filled in by `render.js`, into `.prose`.
 * @param {Message} message
 * @param {number} index of it in the conversation
 * @param {boolean} last whether it is the last one
 * @param {Actions} actions
 * @returns {HTMLElement}
 */
export function messageElement(message, index, last, actions) {
  const mine = message.role === "user";
  const article = element("article", { class: `message ${message.role}`, "data-index": index });
  article.append(
    element("h2", { class: "hidden" }, mine ? "You" : message.model || "Answer"),
    element("div", { class: mine ? "bubble" : "prose" }, mine ? message.content : null),
  );
  if (!mine) article.append(footElement(message, last, actions));
  else article.append(questionTools(message, index, article, actions));
  return article;
}

function questionTools(message, index, article, actions) {
  return element(
    "div",
    { class: "tools" },
    iconButton("edit", "Edit this question", () => edit(message, index, article, actions)),
    copyButton("Copy this question", message),
  );
}

function copyButton(name, message) {
  const act = async (event) => {
    const button = event.currentTarget;
    flashCopied(button, await copyText(message.content));
  };
  return iconButton("copy", name, act);
}

/** Put an editor in the place of the question. */
function edit(message, index, article, actions) {
  const area = element("textarea", { value: message.content, "aria-label": "Edit your question" });
  const before = [...article.childNodes];
  const close = () => {
    article.replaceChildren(...before);
    article.querySelector("button")?.focus();
  };
  const submit = (event) => {
    event.preventDefault();
    if (area.value.trim()) actions.edit(index, area.value.trim());
  };
  const keys = (event) => {
    if (event.key === "Escape") close();
    else if (sends(event)) submit(event);
    else return;
    event.stopPropagation();
  };
  const form = element(
    "form",
    { class: "editor", on: { submit, keydown: keys } },
    area,
    element("p", { class: "hint" }, "Asks again from here; what follows is replaced."),
    element("button", { type: "button", class: "button", on: { click: close } }, "Cancel"),
    element("button", { type: "submit", class: "button strong" }, "Ask again"),
  );
  article.replaceChildren(form);
  fit(area);
  area.addEventListener("input", () => fit(area));
  area.focus();
}

/**
 * Whether a key press in a text area sends it; not while an input method composes a character.
 * @param {KeyboardEvent} event
 */
export function sends(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}

/**
 * As high as its text, up to what the style sheet allows.
 * @param {HTMLTextAreaElement} area
 */
export function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

/**
 * What stands below an answer: what went wrong, what the guard did, how fast it was, what to do.
 * @param {Message} message
 * @param {boolean} last
 * @param {Actions} actions
 * @returns {HTMLElement}
 */
export function footElement(message, last, actions) {
  const foot = element("div", { class: "foot" });
  if (message.state === "writing") {
    const text = message.content ? "Writing" : "Reading your question";
    const pulse = element("span", { class: "pulse" });
    foot.append(element("p", { class: "facts writing" }, pulse, text));
    return foot;
  }
  const trouble = troubleElement(message, last, actions);
  if (trouble) foot.append(trouble);
  const guard = guardElement(message.guard);
  if (guard) foot.append(guard);
  const tools = element("div", { class: "tools" });
  if (message.content) tools.append(copyButton("Copy this answer", message));
  if (last) tools.append(iconButton("retry", "Answer again", actions.retry));
  foot.append(element("div", { class: "row" }, tools, factsElement(message)));
  return foot;
}

function troubleElement(message, last, { retry, startOver }) {
  if (message.state !== "failed") return null;
  const outgrown = message.code === "context_length_exceeded";
  const buttons = element("div", { class: "row" });
  const add = (label, click) => {
    const properties = { type: "button", class: "button", on: { click } };
    buttons.append(element("button", properties, label));
  };
  if (last) add("Try again", retry);
  if (outgrown) add("New conversation", startOver);
  return element(
    "div",
    { class: "trouble", role: "alert" },
    element("p", {}, icon("alert"), element("span", {}, message.error ?? "The answer failed.")),
    buttons,
  );
}

/** What the guard did, in words and a drawing, not by colour alone. */
function guardElement(guard) {
  if (!guard) return null;
  const [drawing, words] = {
    warn: ["alert", "The guard warns"],
    block: ["stop", "The guard stopped this"],
  }[guard.decision] ?? ["shield", "Guard: nothing found"];
  const text = element("span", {}, guard.reason ? `${words}: ${guard.reason}` : words);
  return element("p", { class: `guard ${guard.decision}` }, icon(drawing), text);
}

/** The figures of an answer, in one line. */
function factsElement(message) {
  const facts = element("p", { class: "facts" });
  for (const [text, title] of factsOf(message)) facts.append(element("span", { title }, text));
  return facts;
}

function factsOf({ usage, speed, first_ms: first, finish, state, model }) {
  const facts = [];
  if (state === "stopped") facts.push(["stopped by you", "You stopped this answer"]);
  else if (state === "interrupted") facts.push(["interrupted", "The page was left meanwhile"]);
  else if (finish && finish !== "stop") facts.push([FINISHES[finish] ?? finish, "Why it ended"]);
  if (usage) {
    const cached = usage.cached_tokens ? `, ${usage.cached_tokens} of them from the cache` : "";
    const title = `The question and all before it: ${usage.prompt_tokens} tokens${cached}`;
    facts.push([`${usage.prompt_tokens} tokens read`, title]);
    facts.push([`${usage.completion_tokens} written`, "Tokens of this answer"]);
  }
  if (speed) facts.push([`${speed.toFixed(1)} tokens/s`, "From the first token to the last"]);
  if (first) facts.push([`first after ${seconds(first)}`, "Time to the first token"]);
  if (finish === "stop") facts.push(["complete", "The model ended its answer"]);
  if (model) facts.push([model, "Model"]);
  return facts;
}

const FINISHES = {
  length: "cut off: token limit reached (see settings)",
  content_filter: "ended by the guard",
  tool_calls: "asked for a tool",
};

function seconds(ms) {
  return ms < 995 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}
