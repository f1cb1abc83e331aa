/** The small things around the chat: the key dialog, light and dark, the drawer. */

import { apiKey, keepApiKey, onKeyWanted } from "./api.js";
import { announce, byId, element, icon } from "./dom.js";

const THEMES = { system: "as the system", light: "light", dark: "dark" };
const THEME_ICONS = { system: "system", light: "sun", dark: "moon" };

/** Make the theme button of a page work. */
export function setUpTheme() {
  const button = byId("theme");
  const show = () => {
    const name = `Colours: ${THEMES[window.punaTheme.choice]}`;
    button.replaceChildren(icon(THEME_ICONS[window.punaTheme.choice]));
    button.title = name;
    button.setAttribute("aria-label", name);
  };
  button.addEventListener("click", () => {
    const names = Object.keys(THEMES);
    const next = names[(names.indexOf(window.punaTheme.choice) + 1) % names.length];
    window.punaTheme.choice = next;
    show();
    announce(`Colours: ${THEMES[next]}`);
  });
  show();
}

/** Ask the user for a key when the server wants one; several requests share one dialog. */
export function setUpKey() {
  const dialog = keyDialog();
  document.body.append(dialog);
  /** @type {Promise<boolean> | null} */
  let asked = null;
  onKeyWanted((reason) => {
    byId("key-reason").textContent = apiKey() ? reason : "";
    asked ??= new Promise((resolve) => {
      dialog.returnValue = "";
      byId("key").value = "";
      dialog.showModal();
      const close = () => {
        asked = null;
        resolve(dialog.returnValue === "given");
      };
      dialog.addEventListener("close", close, { once: true });
    });
    return asked;
  });
}

function keyDialog() {
  const dialog = element("dialog", { class: "box", "aria-labelledby": "key-title" });
  const submit = (event) => {
    event.preventDefault();
    keepApiKey(byId("key").value.trim());
    dialog.close("given");
  };
  const words = "Kept in this tab until you close it, and sent to this server only.";
  const cancel = { class: "button", type: "button", on: { click: () => dialog.close() } };
  const form = element(
    "form",
    { method: "dialog", on: { submit } },
    element("h2", { id: "key-title" }, "This server asks for a key"),
    element("p", { id: "key-reason" }),
    element(
      "div",
      { class: "field" },
      element("label", { for: "key" }, "API key"),
      element("input", { id: "key", type: "password", autocomplete: "off", required: true }),
      element("p", { class: "hint" }, words),
    ),
    element(
      "footer",
      {},
      element("button", cancel, "Cancel"),
      element("button", { class: "button strong", type: "submit" }, "Use this key"),
    ),
  );
  dialog.append(form);
  return dialog;
}

/** The list of conversations on a narrow screen: over the page, closed by Esc or beside it. */
export function setUpDrawer() {
  const drawer = byId("drawer");
  const narrow = window.matchMedia("(max-width: 760px)");
  const set = (open) => {
    drawer.classList.toggle("open", open);
    byId("shade").hidden = !open;
    byId("drawer-open").setAttribute("aria-expanded", String(open));
    // What is out of sight is out of reach, and what is behind the drawer too.
    drawer.inert = narrow.matches && !open;
    document.querySelector(".stage").inert = narrow.matches && open;
    if (open) byId("drawer-close").focus();
  };
  const close = () => {
    if (!drawer.classList.contains("open")) return;
    set(false);
    byId("drawer-open").focus();
  };
  byId("drawer-open").addEventListener("click", () => set(true));
  byId("drawer-close").addEventListener("click", close);
  byId("shade").addEventListener("click", close);
  drawer.addEventListener("keydown", (event) => event.key === "Escape" && close());
  narrow.addEventListener("change", () => set(false));
  set(false);
  return { close: () => set(false) };
}
