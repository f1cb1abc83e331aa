/** The dashboard: asks for the server's figures once a second while it can be seen. */

import { apiKey, figures, keepApiKey } from "./api.js";
import { setUpKey, setUpTheme } from "./dialogs.js";
import { banner, byId, element } from "./dom.js";
import { Plot } from "./plot.js";

const EVERY_MS = 1_000;
const AFTER_FAILURE_MS = 3_000;
/** Seconds over which rates of rare things are taken. */
const WINDOW_S = 10;

const VERDICTS = ["allow", "warn", "block"];

const whole = (value) => Math.round(value).toLocaleString("en");
const tenths = (value) => (value < 99.95 ? value.toFixed(1) : whole(value));
const percent = (value) => `${Math.round(value * 100)}%`;
const milliseconds = (value) => {
  if (value >= 995) return `${(value / 1000).toFixed(1)} s`;
  return `${value < 9.95 ? value.toFixed(1) : Math.round(value)} ms`;
};

/** Plots of a model: title, lines, format, and the values of a moment. */
const MODEL_PLOTS = [
  ["Tokens a second", ["written"], tenths, (_, rate) => [rate("generated_tokens")]],
  ["Requests", ["running", "waiting"], whole, ({ engine }) => [engine.running, engine.waiting]],
  ["Time to first token", ["median", "95%"], milliseconds, (model) => middle(model.ttft_ms)],
  ["Time between tokens", ["median", "95%"], milliseconds, (model) => middle(model.inter_token_ms)],
  ["Pages of the cache", ["used", "cached", "free"], whole, ({ engine }) => pages(engine)],
  ["Prompt found in the cache", ["share"], percent, (_, __, share) => [share]],
];

function middle({ p50, p95 }) {
  return [p50, p95];
}

function pages({ pages, pages_used: used, pages_cached: cached }) {
  return [used, cached, pages - used - cached];
}

/** What is shown of one model. */
class ModelView {
  /** @param {string} name */
  constructor(name) {
    this.history = [];
    this.plots = MODEL_PLOTS.map(([title, lines, format]) => new Plot(title, lines, format));
    this.facts = element("p", { class: "hint" });
    this.body = element("tbody");
    const heads = ["Figure", "Value"].map((text) => element("th", { scope: "col" }, text));
    const head = element("thead", {}, element("tr", {}, ...heads));
    const table = element("table", {}, element("caption", {}, `${name}, now`), head, this.body);
    this.root = element(
      "section",
      { "aria-label": name },
      element("h2", {}, name),
      this.facts,
      element("div", { class: "plots" }, ...this.plots.map(({ root }) => root)),
      element("details", {}, element("summary", {}, "The same as a table"), table),
    );
  }

  /** Show the figures of a moment, in seconds. */
  update(at, model) {
    const { engine } = model;
    this.history.push({ at, engine });
    while (this.history[0].at < at - WINDOW_S) this.history.shift();
    const before = this.history.at(-2);
    const rate = (name) => {
      if (!before || at - before.at > 3 * WINDOW_S) return null;
      return Math.max(0, engine[name] - before.engine[name]) / (at - before.at);
    };
    const share = this.#share(engine);
    const values = MODEL_PLOTS.map((row) => row[3](model, rate, share));
    this.plots.forEach((plot, index) => plot.add({ at, values: values[index] }));
    this.facts.textContent = factsOf(model).join(" · ");
    this.#fill(values, model);
  }

  /** Of the prompt tokens of the last seconds, the share that the cache saved from being read. */
  #share(engine) {
    const [first] = this.history;
    const read = engine.prompt_tokens - first.engine.prompt_tokens;
    const saved = engine.cached_tokens - first.engine.cached_tokens;
    return read + saved > 0 ? saved / (read + saved) : null;
  }

  #fill(values, model) {
    const rows = MODEL_PLOTS.flatMap(([title, lines, format], plot) =>
      lines.map((line, index) => {
        const value = values[plot][index];
        return [`${title}, ${line}`, value === null ? "–" : format(value)];
      }),
    );
    const { engine } = model;
    rows.push(["Requests since the start", whole(model.requests)]);
    rows.push(["Tokens read since the start", whole(engine.prompt_tokens)]);
    rows.push(["Tokens found in the cache since the start", whole(engine.cached_tokens)]);
    rows.push(["Tokens written since the start", whole(engine.generated_tokens)]);
    const made = rows.map(([name, value]) =>
      element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value)),
    );
    this.body.replaceChildren(...made);
  }
}

function factsOf({ engine, requests, adapters }) {
  const facts = [
    `${whole(requests)} requests`,
    `${whole(engine.prompt_tokens)} tokens read`,
    `${whole(engine.cached_tokens)} found in the cache`,
    `${whole(engine.generated_tokens)} written`,
  ];
  if (engine.cancelled) facts.push(`${whole(engine.cancelled)} cancelled`);
  if (engine.failed) facts.push(`${whole(engine.failed)} failed`);
  if (engine.drafted_tokens) {
    const right = percent(engine.accepted_tokens / engine.drafted_tokens);
    facts.push(`${right} of drafted tokens right`);
  }
  if (adapters.length) facts.push(`adapters: ${adapters.join(", ")}`);
  return facts;
}

/** @type {Map<string, ModelView>} */
const views = new Map();
const guardPlot = new Plot("Guard, verdicts a second", VERDICTS, tenths);
let guardBefore = null;

function show(data) {
  const at = performance.now() / 1000;
  byId("state").textContent = data.draining ? "Stopping" : `Up ${duration(data.uptime_s)}`;
  showServer(data, at);
  for (const [name, model] of Object.entries(data.models)) {
    if (!views.has(name)) {
      views.set(name, new ModelView(name));
      byId("models").append(views.get(name).root);
    }
    views.get(name).update(at, model);
  }
}

function showServer({ requests, rejected, guard }, at) {
  const verdicts = VERDICTS.map((name) => guard.input[name] + guard.output[name]);
  const refused = Object.entries(rejected);
  const cards = [
    ["In hand", requests.in_hand],
    ["Answered", requests.total],
    ["Client errors", countOf(requests.by_status, 400, 499)],
    ["Server errors", countOf(requests.by_status, 500, 600)],
    ["Guard: allowed", verdicts[0]],
    ["Guard: warned", verdicts[1]],
    ["Guard: blocked", verdicts[2]],
    ...refused.map(([reason, n]) => [`Refused: ${reason.replaceAll("_", " ")}`, n]),
  ];
  const made = cards.map(([name, n]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, whole(n))),
  );
  byId("server").replaceChildren(...made);
  showGuard(verdicts, at);
}

/** Answers with a status from one up to, not including, another (499 is a client that left). */
function countOf(byStatus, from, to) {
  const counts = Object.entries(byStatus).filter(([status]) => status >= from && status < to);
  return counts.reduce((sum, [, n]) => sum + n, 0);
}

function showGuard(verdicts, at) {
  const seconds = guardBefore ? at - guardBefore.at : 0;
  const rates = verdicts.map((n, index) =>
    seconds > 0 ? Math.max(0, n - guardBefore.verdicts[index]) / seconds : null,
  );
  guardBefore = { at, verdicts };
  // Without a guard there is nothing to draw.
  byId("server-plots").hidden = verdicts.every((n) => n === 0);
  guardPlot.add({ at, values: rates });
}

function duration(seconds) {
  const units = [["d", 86_400], ["h", 3_600], ["min", 60], ["s", 1]];
  const first = Math.max(0, units.findIndex(([, size]) => seconds >= size));
  let rest = Math.floor(seconds);
  const parts = units.slice(first, first + 2).map(([unit, size]) => {
    const n = Math.floor(rest / size);
    rest -= n * size;
    return `${n} ${unit}`;
  });
  return parts.join(" ");
}

let timer = 0;
let asking = false;

/** Ask, show, and ask again later; not while the page is hidden. */
async function poll() {
  clearTimeout(timer);
  if (document.hidden || asking) return;
  asking = true;
  const begun = performance.now();
  let pause = EVERY_MS;
  try {
    show(await figures());
    banner("models", "");
  } catch (error) {
    banner("models", error.message, { label: "Try again", act: poll });
    byId("state").textContent = "No figures";
    // Who closed the key dialog is not asked again and again.
    pause = error.status === 401 ? 0 : AFTER_FAILURE_MS;
  }
  asking = false;
  byId("key-forget").hidden = apiKey() === "";
  if (pause) timer = setTimeout(poll, Math.max(0, pause - (performance.now() - begun)));
}

setUpTheme();
setUpKey();
byId("server-plots").append(guardPlot.root);
byId("key-forget").addEventListener("click", () => {
  keepApiKey("");
  poll();
});
document.addEventListener("visibilitychange", poll);
poll();
