/** Which model answers: the list in the bar. */

import { models } from "./api.js";
import { banner, byId, element } from "./dom.js";

/** @type {string[]} */
let names = [];

/**
 * Ask the server which models there are; says so above the messages when it cannot tell.
 * @param {() => void} loaded
 */
export async function load(loaded) {
  try {
    names = await models();
  } catch (error) {
    banner("models", error.message, { label: "Try again", act: () => load(loaded) });
    return;
  }
  banner("models", "");
  loaded();
}

/**
 * Show the model of a conversation; one that is no longer here gives way to the first.
 * @param {import("./store.js").Conversation} conversation
 */
export function show(conversation) {
  if (names.length === 0) return;
  if (!names.includes(conversation.model)) conversation.model = names[0];
  const select = byId("model");
  select.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  select.value = conversation.model;
  select.disabled = false;
  byId("welcome-note").textContent =
    `You are talking with ${conversation.model}, on the server this page came from. What you ` +
    "write goes there and nowhere else; conversations are kept in this browser.";
}
