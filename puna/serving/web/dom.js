/** Small helpers for building the page: elements, icons, notices, the clipboard. */

const SVG = "http://www.w3.org/2000/svg";

/** Strokes on a grid of 24 by 24. */
const ICONS = {
  alert: "M12 4 21 19.5H3ZM12 10v4.5M12 17v.2",
  chart: "M4 4v16h16M8 15l3.5-4 3 2.5L20 7",
  check: "M5 12.5 10 17.5 19.5 7",
  close: "M6 6 18 18M18 6 6 18",
  copy: "M9 9h10.5v10.5H9ZM5.5 15H4.5V4.5H15V5.5",
  down: "M12 5v14M6 13l6 6 6-6",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  edit: "M4.5 19.5l1-4.5L16 4.5 19.5 8 9 18.5ZM13.5 7 17 10.5",
  keyboard: "M3 6.5h18v11H3ZM7 10.2h.1M10.3 10.2h.1M13.6 10.2h.1M17 10.2h.1M8.5 14h7",
  menu: "M4 7h16M4 12h16M4 17h16",
  moon: "M19.5 14.5A8 8 0 0 1 9.5 4.5 8 8 0 1 0 19.5 14.5Z",
  plus: "M12 5v14M5 12h14",
  retry: "M19 12a7 7 0 1 1-2.2-5.1M19.5 3.5v4.5H15",
  send: "M12 19.5V5M5.5 11.5 12 5l6.5 6.5",
  shield: "M12 3.5 19 6v5.5c0 4.5-3 7.5-7 9-4-1.5-7-4.5-7-9V6Z",
  sliders: "M4 8h8M18 8h2M4 16h2M12 16h8M15 5.5v5M9 13.5v5",
  stop: "M7 7h10v10H7Z",
  sun: "M12 8.2a3.8 3.8 0 1 0 0 7.6 3.8 3.8 0 0 0 0-7.6ZM12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4M18.7 5.3l-1.4 1.4M6.7 17.3l-1.4 1.4",
  system: "M4 5h16v11H4ZM9 20h6M12 16v4",
  trash: "M5 7h14M9.5 7V4.5h5V7M7 7l.8 12.5h8.4L17 7M10.5 11v5M13.5 11v5",
  upload: "M12 16V4.5M7 9.5l5-5 5 5M5 20h14",
};

/**
 * The element with this id; a missing one is a fault of the page.
 * @template {HTMLElement} T
 * @param {string} id
 * @returns {T}
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no element "${id}"`);
  return /** @type {T} */ (found);
}

/**
 * A new element. Properties are set as properties; `class`, `for`, `role`, `aria-*` and `data-*` as
 * attributes; `on` is a map of listeners. Strings among the children become text.
 * @param {string} tag
 * @param {Record<string, any>} [properties]
 * @param {...(Node | string | null | undefined)} children
 * @returns {any}
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    } else if (/^(class|for|role)$|^(aria|data)-/.test(name)) {
      made.setAttribute(name, value);
    } else {
      made[name] = value;
    }
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/**
 * A drawing that says nothing to screen readers: its button or text does.
 * @param {keyof typeof ICONS} name
 * @returns {SVGSVGElement}
 */
export function icon(name) {
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", "0 0 24 24");
  drawing.setAttribute("class", "icon");
  drawing.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  drawing.append(path);
  return drawing;
}

/** Draw the icons that the page's HTML names in `data-icon`. */
export function drawIcons() {
  for (const place of document.querySelectorAll("[data-icon]")) {
    place.prepend(icon(/** @type {HTMLElement} */ (place).dataset.icon));
  }
}

/**
 * A button of one icon, named for everyone.
 * @param {keyof typeof ICONS} drawing
 * @param {string} name
 * @param {(event: MouseEvent) => void} act
 * @returns {HTMLButtonElement}
 */
export function iconButton(drawing, name, act) {
  const properties = { type: "button", class: "icon-button", title: name, "aria-label": name };
  return element("button", { ...properties, on: { click: act } }, icon(drawing));
}

/**
 * Tell screen readers, and nobody else.
 * @param {string} text
 */
export function announce(text) {
  byId("live").textContent = text;
}

/**
 * A note at the bottom that goes by itself, with something to do about it if there is.
 * @param {string} text
 * @param {{label: string, act: () => void}} [action]
 */
export function notify(text, action) {
  announce(action ? `${text} ${action.label} is at the end of the page.` : text);
  const note = element("div", { class: "toast" }, element("span", {}, text));
  const close = () => note.remove();
  let timer = setTimeout(close, action ? 10_000 : 4_000);
  // Who is on the way to the button has as long as they need.
  const hold = () => clearTimeout(timer);
  const release = () => {
    clearTimeout(timer);
    timer = setTimeout(close, 4_000);
  };
  for (const event of ["mouseenter", "focusin"]) note.addEventListener(event, hold);
  for (const event of ["mouseleave", "focusout"]) note.addEventListener(event, release);
  if (action) {
    const act = () => {
      close();
      action.act();
    };
    const button = { class: "toast-action", type: "button", on: { click: act } };
    note.append(element("button", button, action.label));
  }
  note.append(iconButton("close", "Dismiss", close));
  byId("toasts").replaceChildren(note);
}

/**
 * Say above the messages what is wrong with the page, for as long as it is; "" is nothing.
 * @param {"models" | "storage"} what
 * @param {string} text
 * @param {{label: string, act: () => void}} [action]
 */
export function banner(what, text, action) {
  const bar = byId(`banner-${what}`);
  if (bar.hidden === (text === "") && bar.firstChild?.textContent === text) return;
  bar.hidden = text === "";
  bar.replaceChildren(element("span", {}, text));
  if (!action) return;
  const on = { click: action.act };
  bar.append(element("button", { type: "button", class: "button", on }, action.label));
}

/**
 * Copy a text; where the browser forbids its clipboard (no https), by a selection.
 * @param {string} text
 * @returns {Promise<boolean>} whether it was copied
 */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = element("textarea", { value: text, class: "hidden" });
    const focused = /** @type {HTMLElement | null} */ (document.activeElement);
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return copied;
  }
}

/**
 * Show on a button for a moment that it did its work.
 * @param {HTMLElement} button
 * @param {boolean} copied
 */
export function flashCopied(button, copied) {
  announce(copied ? "Copied" : "The browser does not allow copying");
  if (button.dataset.flashing) return;
  button.dataset.flashing = "yes";
  const before = [...button.childNodes];
  const drawn = button.classList.contains("icon-button");
  const words = copied ? "Copied" : "Not allowed";
  button.replaceChildren(drawn ? icon(copied ? "check" : "alert") : words);
  setTimeout(() => {
    button.replaceChildren(...before);
    delete button.dataset.flashing;
  }, 1_500);
}
