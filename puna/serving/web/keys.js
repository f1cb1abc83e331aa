/** Shortcuts, and the dialog that lists them. */

import { byId, element } from "./dom.js";

/**
 * @typedef {{stop: () => boolean, startOver: () => void, search: () => void,
 *   settings: () => void, question: () => void}} Actions stop tells whether there was anything
 */

const SHORTCUTS = [
  ["Enter", "Send"],
  ["Shift + Enter", "New line"],
  ["Esc", "Stop the answer"],
  ["↑ in an empty question", "Edit the last question"],
  ["Alt + N", "New conversation"],
  ["Ctrl + K", "Search conversations"],
  ["Ctrl + ,", "Settings"],
  ["/", "Go to your question"],
  ["?", "This list"],
];

/**
 * Listen to the shortcuts that hold anywhere on the page, and fill the dialog.
 * @param {Actions} actions
 */
export function setUp(actions) {
  const mac = navigator.platform.startsWith("Mac");
  const rows = SHORTCUTS.flatMap(([keys, what]) => [
    element("dt", {}, mac ? keys.replace("Ctrl", "⌘").replace("Alt", "⌥") : keys),
    element("dd", {}, what),
  ]);
  byId("keys").append(...rows);
  byId("help-open").addEventListener("click", showHelp);
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]") || event.defaultPrevented) return;
    if (event.key === "Escape") {
      if (actions.stop()) event.preventDefault();
      return;
    }
    const act = actionOf(event, actions);
    if (!act) return;
    event.preventDefault();
    act();
  });
}

function showHelp() {
  byId("help").showModal();
}

function actionOf(event, { startOver, search, settings, question }) {
  if (event.altKey) return event.code === "KeyN" ? startOver : null;
  if (event.ctrlKey || event.metaKey) return { k: search, ",": settings }[event.key];
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName ?? "");
  return typing ? null : { "/": question, "?": showHelp }[event.key];
}
