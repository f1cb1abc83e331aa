/** The list of conversations: by date, searched, renamed, deleted (and back), out and in. */

import { announce, byId, element, iconButton, notify } from "./dom.js";
import { runOf } from "./run.js";
import * as store from "./store.js";

const DAY_MS = 86_400_000;

/**
 * @typedef {{open: (id: string) => void, gone: (id: string) => void,
 *   renamed: (id: string) => void, currentId: () => string}} Page
 */

/** @type {Page} */
let page;

/**
 * Make the list work.
 * @param {Page} hooks what the list asks of the page
 */
export function setUp(hooks) {
  page = hooks;
  byId("search").addEventListener("input", show);
  byId("export").addEventListener("click", download);
  byId("import").addEventListener("click", () => byId("import-file").click());
  byId("import-file").addEventListener("change", upload);
  show();
}

/** Show the list as it is now. */
export function show() {
  if (byId("list").querySelector("input")) return; // a title is being written
  const query = byId("search").value.trim();
  const found = query ? store.search(query) : store.all();
  const parts = [...grouped(found)].map(([name, members]) => group(name, members));
  if (found.length === 0) {
    const none = "Your conversations will be listed here.";
    const words = query ? `Nothing holds “${query}”.` : none;
    parts.push(element("p", { class: "hint" }, words));
  }
  const focused = document.activeElement?.closest?.("#list li")?.dataset.id;
  byId("list").replaceChildren(...parts);
  if (focused) focusRow(focused);
}

function grouped(conversations) {
  const groups = new Map();
  for (const conversation of conversations) {
    const age = ageOf(conversation);
    groups.set(age, [...(groups.get(age) ?? []), conversation]);
  }
  return groups;
}

function ageOf({ updated }) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (updated >= today) return "Today";
  if (updated >= today - DAY_MS) return "Yesterday";
  if (updated >= today - 6 * DAY_MS) return "This week";
  if (updated >= today - 30 * DAY_MS) return "This month";
  return "Earlier";
}

function group(name, members) {
  const heading = element("h2", {}, name);
  return element("section", {}, heading, element("ul", {}, ...members.map(row)));
}

function row(conversation) {
  const { id, title } = conversation;
  const current = id === page.currentId() ? "page" : undefined;
  const act = { click: () => page.open(id) };
  const properties = { class: "open", type: "button", title, "aria-current": current, on: act };
  const open = element("button", properties, title);
  const pulse = { class: "pulse", role: "img", "aria-label": "writing" };
  if (runOf(id)) open.prepend(element("span", pulse));
  const item = element("li", { "data-id": id }, open);
  const tools = element("div", { class: "row-tools" });
  tools.append(
    iconButton("edit", `Rename “${title}”`, () => rename(conversation, item)),
    iconButton("trash", `Delete “${title}”`, () => remove(conversation)),
  );
  item.append(tools);
  return item;
}

/** Put an input in the place of the title. */
function rename(conversation, item) {
  const properties = { value: conversation.title, maxLength: 200, "aria-label": "New title" };
  const input = element("input", properties);
  let over = false;
  const finish = (keep) => {
    if (over) return;
    over = true;
    input.remove();
    const title = input.value.trim();
    if (keep && title) {
      Object.assign(conversation, { title, named: true });
      store.save(conversation);
    }
    page.renamed(conversation.id);
    show();
    focusRow(conversation.id);
  };
  input.addEventListener("blur", () => finish(true));
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") finish(true);
    if (event.key === "Escape") finish(false);
    event.stopPropagation();
  });
  item.replaceChildren(input);
  input.select();
}

function focusRow(id) {
  const rows = [...byId("list").querySelectorAll("li")];
  rows.find((item) => item.dataset.id === id)?.querySelector("button")?.focus();
}

function remove(conversation) {
  runOf(conversation.id)?.abandon();
  store.remove(conversation.id);
  page.gone(conversation.id);
  show();
  byId("new").focus();
  const act = () => {
    store.save(conversation);
    page.open(conversation.id);
    show();
  };
  notify(`Deleted “${conversation.title}”.`, { label: "Undo", act });
}

/** Every conversation, as a file. */
function download() {
  const url = URL.createObjectURL(new Blob([store.exportText()], { type: "application/json" }));
  const day = new Date().toISOString().slice(0, 10);
  element("a", { href: url, download: `puna-conversations-${day}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
  announce("Exported");
}

async function upload(event) {
  const [file] = event.target.files;
  event.target.value = "";
  if (!file) return;
  try {
    const { taken, known } = store.importText(await file.text());
    notify(`${taken} imported${known ? `, ${known} already here` : ""}.`);
  } catch (error) {
    notify(error.message);
  }
  show();
}
