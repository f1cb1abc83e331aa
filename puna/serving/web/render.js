/** Markdown in the page: rendered by the server, put in place block by block. */

import { markdown } from "./api.js";

const LEAST_PAUSE_MS = 250;

/** The one way from text to HTML; the browser enforces that there is no other. */
const policy = window.trustedTypes?.createPolicy("puna", { createHTML: (html) => html });

/** HTML of finished texts. @type {Map<string, string>} */
const finished = new Map();
const MOST_FINISHED = 500;

/**
 * Show Markdown texts in their places: at once as plain text, then as HTML, in one request.
 * @param {{place: HTMLElement, text: string}[]} parts
 */
export async function showAll(parts) {
  const wanted = parts.filter(({ place, text }) => {
    const html = finished.get(text);
    if (html === undefined) plain(place, text);
    else put(place, html);
    return html === undefined;
  });
  if (wanted.length === 0) return;
  try {
    const html = await markdown(wanted.map(({ text }) => text));
    wanted.forEach(({ place, text }, index) => {
      remember(text, html[index]);
      put(place, html[index]);
    });
  } catch {
    // It stays readable as plain text.
  }
}

function remember(text, html) {
  if (finished.size >= MOST_FINISHED) finished.delete(finished.keys().next().value);
  finished.set(text, html);
}

function plain(place, text) {
  place.classList.add("plain");
  place.textContent = text;
}

/** Replace what differs: blocks that stay keep their selection, focus and scroll position. */
function put(place, html) {
  const template = document.createElement("template");
  template.innerHTML = policy ? policy.createHTML(html) : html;
  if (place.classList.contains("plain")) place.replaceChildren();
  place.classList.remove("plain");
  const old = [...place.childNodes];
  const fresh = [...template.content.childNodes];
  fresh.forEach((node, index) => {
    if (!old[index]) place.append(node);
    else if (!old[index].isEqualNode(node)) old[index].replaceWith(node);
  });
  old.slice(fresh.length).forEach((node) => node.remove());
}

/** A text that grows: shown at most four times a second, and whole at the end. */
export class Growing {
  #place;
  #shown;
  #text = "";
  #rendered = "";
  #working = false;
  #broken = false;
  #done = false;

  /**
   * @param {HTMLElement} place
   * @param {() => void} shown called after each change of the page
   */
  constructor(place, shown) {
    this.#place = place;
    this.#shown = shown;
  }

  /** @param {string} text all of it, so far */
  update(text) {
    this.#text = text;
    if (this.#broken) this.#showPlain();
    else if (!this.#working) this.#work();
  }

  /**
   * Show all of it, once and for all.
   * @param {string} text
   */
  async finish(text) {
    this.#text = text;
    this.#done = true;
    try {
      const [html] = await markdown([text]);
      remember(text, html);
      put(this.#place, html);
      this.#shown();
    } catch {
      this.#showPlain();
    }
  }

  /** Render for as long as there is something new, with pauses. */
  async #work() {
    this.#working = true;
    while (this.#text !== this.#rendered && !this.#done && !this.#broken) {
      const begun = performance.now();
      await this.#render(this.#text);
      // A long text takes long to render: leave the server at least three quarters of the time.
      const pause = Math.max(LEAST_PAUSE_MS, 3 * (performance.now() - begun));
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
    this.#working = false;
  }

  async #render(text) {
    try {
      const [html] = await markdown([text]);
      if (this.#done) return;
      put(this.#place, html);
      this.#rendered = text;
      this.#shown();
    } catch {
      this.#broken = true;
      if (!this.#done) this.#showPlain();
    }
  }

  #showPlain() {
    plain(this.#place, this.#text);
    this.#shown();
  }
}
