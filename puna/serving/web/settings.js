/** Sampling settings: what there is, what is sane, the dialog, and what goes into a request. */

import { byId, element } from "./dom.js";
import { loadSettings, saveSettings } from "./store.js";

/**
 * Each setting: its name in a request, its default, and, where the default means "none", no entry
 * in the request at all.
 */
const FIELDS = [
  {
    name: "temperature", label: "Temperature", kind: "range", min: 0, max: 2, step: 0.05,
    value: 0.7, hint: "0 always takes the most probable word; higher is more varied.",
  },
  {
    name: "top_p", label: "Top-p", kind: "range", min: 0.05, max: 1, step: 0.05, value: 0.95,
    hint: "Choose among the fewest words whose probabilities reach this sum.",
  },
  {
    name: "min_p", label: "Min-p", kind: "range", min: 0, max: 1, step: 0.01, value: 0, none: true,
    hint: "Leave out words less probable than this share of the most probable one.",
  },
  {
    name: "top_k", label: "Top-k", kind: "number", min: 0, max: 100000, step: 1, value: 0,
    none: true, hint: "Choose among this many words; 0 is all.",
  },
  {
    name: "max_tokens", label: "Most tokens of an answer", kind: "number", min: 1, max: 1000000,
    step: 1, value: 512,
  },
  {
    name: "seed", label: "Seed", kind: "number", min: 0, max: 2147483647, step: 1, value: "",
    none: true, hint: "The same seed and question give the same answer; empty is a new one.",
  },
  {
    name: "stop", label: "Stop at", kind: "lines", value: "", none: true,
    hint: "Texts that end the answer, one a line.",
  },
  {
    name: "presence_penalty", label: "Presence penalty", kind: "number", min: -2, max: 2, step: 0.1,
    value: 0, none: true, hint: "Above 0: rather new words than ones already written.",
  },
  {
    name: "frequency_penalty", label: "Frequency penalty", kind: "number", min: -2, max: 2,
    step: 0.1, value: 0, none: true, hint: "The same, more so the more often a word was written.",
  },
  {
    name: "repetition_penalty", label: "Repetition penalty", kind: "number", min: 0.1, max: 10,
    step: 0.05, value: 1, none: true, hint: "Above 1: fewer repetitions, of the question too.",
  },
];

const idOf = ({ name }) => `set-${name}`;
const defaults = () => Object.fromEntries(FIELDS.map((field) => [field.name, field.value]));

/** @type {Record<string, any>} */
let current = defaults();
let system = "";
let model = "";

/** Read what was kept, and build the dialog's fields. */
export function setUp() {
  const kept = loadSettings();
  const known = FIELDS.filter((field) => valid(field, kept.sampling?.[field.name]));
  for (const field of known) current[field.name] = kept.sampling[field.name];
  system = String(kept.system ?? "");
  model = String(kept.model ?? "");
  byId("sampling").append(...FIELDS.map(fieldElement));
  byId("settings-reset").addEventListener("click", () => {
    current = defaults();
    keep();
    show();
  });
}

/** @returns {{system: string, model: string}} what new conversations begin with */
export const forNew = () => ({ system, model });

/** @param {{system?: string, model?: string}} start what new conversations are to begin with */
export function keepForNew(start) {
  system = start.system ?? system;
  model = start.model ?? model;
  keep();
}

/** @returns {Record<string, any>} the sampling part of a request's body */
export function sampling() {
  const asked = FIELDS.filter((field) => !(field.none && current[field.name] === field.value));
  return Object.fromEntries(asked.map((field) => [field.name, requested(field)]));
}

function requested(field) {
  const value = current[field.name];
  return field.kind === "lines" ? value.split("\n").filter(Boolean) : value;
}

function keep() {
  saveSettings({ sampling: current, system, model });
}

/** Open the dialog for a conversation; `changed` hears of each new system prompt. */
export function open(conversation, changed) {
  const area = byId("system");
  area.value = conversation.system;
  area.oninput = () => {
    keepForNew({ system: area.value });
    changed(area.value);
  };
  show();
  byId("settings").showModal();
}

/** Show the current values in the dialog. */
function show() {
  for (const field of FIELDS) {
    byId(idOf(field)).value = String(current[field.name]);
    complain(field, "");
    if (field.kind === "range") byId(`${idOf(field)}-value`).value = String(current[field.name]);
  }
}

/** A labelled input with its hint. */
function fieldElement(field) {
  const { label, hint } = field;
  const id = idOf(field);
  const input = inputElement(field);
  const hints = [hint && `${id}-hint`, `${id}-error`].filter(Boolean).join(" ");
  input.setAttribute("aria-describedby", hints);
  input.addEventListener("input", () => take(field, input));
  return element(
    "div",
    { class: `field ${field.kind}` },
    element("label", { for: id }, label),
    field.kind === "range" ? element("output", { id: `${id}-value`, for: id }) : null,
    input,
    hint ? element("p", { class: "hint", id: `${id}-hint` }, hint) : null,
    element("p", { class: "wrong", id: `${id}-error` }),
  );
}

function inputElement({ name, kind, min, max, step }) {
  const id = idOf({ name });
  if (kind === "lines") return element("textarea", { id, name, rows: 2 });
  const inputMode = Number.isInteger(step) ? "numeric" : "decimal";
  return element("input", { id, name, type: kind, min, max, step, inputMode });
}

/** Keep what was typed if it is a value; say so if not. */
function take(field, input) {
  const typed = input.value.trim();
  const empty = typed === "" && !input.validity.badInput;
  let value = field.kind === "lines" ? input.value : Number(typed);
  if (field.kind !== "lines" && empty) value = field.value;
  const good = !input.validity.badInput && valid(field, value);
  complain(field, good ? "" : wish(field));
  if (!good) return;
  current[field.name] = value;
  if (field.kind === "range") byId(`${idOf(field)}-value`).value = String(value);
  keep();
}

function valid({ kind, min, max, step, value: fallback }, value) {
  if (kind === "lines") return typeof value === "string";
  if (value === "") return fallback === "";
  if (typeof value !== "number" || !(value >= min && value <= max)) return false;
  return step < 1 || Number.isInteger(value);
}

function wish({ min, max, step }) {
  return `A ${step < 1 ? "" : "whole "}number from ${min} to ${max}.`;
}

function complain(field, message) {
  byId(`${idOf(field)}-error`).textContent = message;
  byId(idOf(field)).setAttribute("aria-invalid", String(message !== ""));
}
