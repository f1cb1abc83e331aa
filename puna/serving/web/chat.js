/** The chat page: which conversation is shown, and what the user does with it. */

import { apiKey, keepApiKey } from "./api.js";
import { setUpDrawer, setUpKey, setUpTheme } from "./dialogs.js";
import { announce, banner, byId, copyText } from "./dom.js";
import { drawIcons, element, flashCopied, notify } from "./dom.js";
import * as keys from "./keys.js";
import * as list from "./list.js";
import { fit, footElement, messageElement, sends } from "./messages.js";
import * as models from "./models.js";
import { Growing, showAll } from "./render.js";
import { Run, runOf, interruptAll } from "./run.js";
import * as scroll from "./scroll.js";
import * as settings from "./settings.js";
import * as store from "./store.js";

const EXAMPLES = [
  "Explain in three sentences why the sky is blue.",
  "Write a Python function that checks whether a word is a palindrome.",
  "Give me four ideas for a quiet weekend in the mountains.",
  "Rewrite politely: send me the report now.",
];

/** @type {import("./store.js").Conversation} */
let current;
/** @type {ReturnType<typeof setUpDrawer>} */
let drawer;

const question = byId("question");

/* ---- showing ---- */

/** Show a conversation as it is now. */
function show(conversation) {
  current = conversation;
  store.keepOpen(current.id);
  showTitle();
  const shown = current.messages.map((_, index) => elementOf(index));
  byId("messages").replaceChildren(...shown);
  byId("welcome").hidden = shown.length > 0;
  const answers = current.messages
    .map(({ role, content }, index) => ({ role, text: content, place: proseIn(shown[index]) }))
    .filter(({ role, text }) => role === "assistant" && text);
  showAll(answers);
  const run = runOf(current.id);
  if (run) follow(run);
  models.show(current);
  showButtons();
  list.show();
  scroll.toEnd();
}

function showTitle() {
  byId("title").textContent = current.title;
  document.title = current.messages.length ? `${current.title} · Puna` : "Puna chat";
}

function elementOf(index) {
  const last = index === current.messages.length - 1;
  return messageElement(current.messages[index], index, last, { retry, edit, startOver });
}

function proseIn(article) {
  return article.querySelector(".prose");
}

function showButtons() {
  const writing = Boolean(runOf(current.id));
  // The button under a finger or a focus does not vanish from it.
  if (!writing && document.activeElement === byId("stop")) question.focus();
  byId("stop").hidden = !writing;
  byId("send").hidden = writing;
  byId("send").disabled = question.value.trim() === "";
}

/** Let the last message on the page grow with a run. */
function follow(run) {
  const article = byId("messages").lastElementChild;
  const growing = new Growing(proseIn(article), scroll.grown);
  article.setAttribute("aria-busy", "true");
  growing.update(run.message.content);
  run.changed = () => (run.done ? finish(run, article, growing) : grow(run, article, growing));
}

function grow(run, article, growing) {
  if (!article.isConnected) return;
  growing.update(run.message.content);
  const speed = run.speed ? `Writing, about ${run.speed.toFixed(0)} tokens/s` : "Writing";
  article.querySelector(".facts").lastChild.textContent = speed;
}

async function finish(run, article, growing) {
  list.show();
  if (!article.isConnected) return;
  showButtons();
  await growing.finish(run.message.content);
  article.removeAttribute("aria-busy");
  article.querySelector(".foot").replaceWith(
    footElement(run.message, true, { retry, edit, startOver }),
  );
  scroll.grown();
  if (run.message.state !== "failed") announce(spoken(run.message, proseIn(article)));
}

function spoken({ state }, prose) {
  if (state === "stopped") return "Answer stopped.";
  return `Answer: ${prose.textContent.trim().slice(0, 1_000)}`;
}

/* ---- asking ---- */

/** Have the model answer the conversation as it stands. */
function answer() {
  const run = new Run(current, () => {});
  const going = run.go();
  show(current);
  return going;
}

function send() {
  const text = question.value.trim();
  if (!text || runOf(current.id)) return;
  question.value = "";
  fit(question);
  current.messages.push({ role: "user", content: text });
  answer();
}

/** Replace everything from a message on, and answer; what was there can come back. */
function replaceFrom(index, messages, words) {
  runOf(current.id)?.stop();
  const conversation = current;
  const before = conversation.messages;
  conversation.messages = [...before.slice(0, index), ...messages];
  answer();
  const act = () => {
    runOf(conversation.id)?.stop();
    conversation.messages = before;
    store.save(conversation, { touch: true });
    show(conversation);
  };
  notify(words, { label: "Undo", act });
}

function retry() {
  replaceFrom(current.messages.length - 1, [], "Answering again.");
}

function edit(index, text) {
  replaceFrom(index, [{ role: "user", content: text }], "Asking again from here.");
}

function startOver() {
  show(store.create(settings.forNew()));
  drawer.close();
  question.focus();
}

/** Keep a change of an existing conversation; a new one is kept with its first message. */
function keepChange() {
  if (store.get(current.id)) store.save(current);
}

/* ---- listening ---- */

function listen() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  question.addEventListener("input", () => {
    fit(question);
    showButtons();
  });
  question.addEventListener("keydown", (event) => {
    if (sends(event)) {
      event.preventDefault();
      send();
    } else if (event.key === "ArrowUp" && question.value === "") {
      event.preventDefault();
      [...document.querySelectorAll('.user [aria-label="Edit this question"]')].at(-1)?.click();
    }
  });
  byId("stop").addEventListener("click", () => stop());
  byId("new").addEventListener("click", startOver);
  byId("messages").addEventListener("click", copyCode);
  byId("settings-open").addEventListener("click", openSettings);
  byId("model").addEventListener("change", (event) => {
    current.model = event.target.value;
    settings.keepForNew({ model: current.model });
    keepChange();
    models.show(current);
  });
  byId("key-forget").addEventListener("click", (event) => {
    keepApiKey("");
    event.target.hidden = true;
    notify("The key is forgotten.");
  });
  keys.setUp({ stop, startOver, search: openSearch, settings: openSettings, question: toQuestion });
  window.addEventListener("pagehide", interruptAll);
}

/** Returns whether there was anything to stop. */
function stop() {
  const run = runOf(current.id);
  run?.stop();
  return Boolean(run);
}

function toQuestion() {
  question.focus();
}

function openSettings() {
  byId("key-forget").hidden = apiKey() === "";
  settings.open(current, (system) => {
    current.system = system;
    keepChange();
  });
}

async function copyCode({ target }) {
  if (!target.classList.contains("copy-code")) return;
  const code = target.closest(".code").querySelector("code").textContent;
  flashCopied(target, await copyText(code));
}

function openSearch() {
  if (byId("drawer").inert) byId("drawer-open").click();
  byId("search").focus();
}

/** Another tab changed a conversation: what is written here goes on, the rest is shown anew. */
function otherTab(id) {
  const run = runOf(id);
  const changed = store.get(id);
  if (run) store.save(run.conversation);
  else if (id === current.id && changed) show(changed);
  list.show();
}

function fillExamples() {
  const items = EXAMPLES.map((text) => {
    const act = () => {
      question.value = text;
      send();
    };
    return element("li", {}, element("button", { type: "button", on: { click: act } }, text));
  });
  byId("examples").append(...items);
}

function start() {
  drawIcons();
  setUpTheme();
  setUpKey();
  store.onTrouble((text) => banner("storage", text));
  store.onOtherTab(otherTab);
  store.load();
  settings.setUp();
  drawer = setUpDrawer();
  scroll.setUp();
  current = store.lastOpen() ?? store.create(settings.forNew());
  list.setUp({
    currentId: () => current.id,
    open: (id) => {
      show(store.get(id) ?? current);
      drawer.close();
      // Not on a phone, where it would bring up the keyboard.
      if (matchMedia("(pointer: fine)").matches) question.focus();
      else byId("scroll").focus();
    },
    renamed: (id) => id === current.id && showTitle(),
    gone: (id) => id === current.id && startOver(),
  });
  fillExamples();
  listen();
  show(current);
  models.load(() => models.show(current));
  question.focus();
}

start();
