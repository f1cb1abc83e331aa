/** One answer being written: asks, collects, measures, keeps. Knows nothing of the page. */

import { streamChat } from "./api.js";
import { sampling } from "./settings.js";
import { save } from "./store.js";

const SAVE_EVERY_MS = 1_000;

/** @type {Map<string, Run>} those under way, by conversation */
const runs = new Map();

/**
 * @param {string} id of a conversation
 * @returns {Run | undefined} the answer that is being written in it
 */
export function runOf(id) {
  return runs.get(id);
}

/** The page is about to go: keep what there is of every answer under way. */
export function interruptAll() {
  for (const run of [...runs.values()]) {
    run.message.state = "interrupted";
    save(run.conversation);
    run.abandon();
  }
}

/** The answer to a conversation whose last message is the user's. */
export class Run {
  #abort = new AbortController();
  #begun = performance.now();
  #first = 0;
  #last = 0;
  #pieces = 0;
  #saved = 0;
  #abandoned = false;

  /**
   * @param {import("./store.js").Conversation} conversation
   * @param {(run: Run) => void} changed hears of each piece of the answer, and of its end
   */
  constructor(conversation, changed) {
    this.conversation = conversation;
    this.changed = changed;
    this.done = false;
    /** @type {import("./store.js").Message} */
    this.message = { role: "assistant", content: "", state: "writing", model: conversation.model };
    this.body = requestBody(conversation);
    conversation.messages.push(this.message);
  }

  /** Ask, and resolve when the answer is complete, stopped or failed. */
  async go() {
    runs.set(this.conversation.id, this);
    save(this.conversation, { touch: true });
    try {
      for await (const piece of streamChat(this.body, this.#abort.signal)) this.#take(piece);
      delete this.message.state;
    } catch (error) {
      this.#fail(error);
    }
    this.done = true;
    // Stopped in favour of another one, it is no longer the one under way.
    if (runs.get(this.conversation.id) === this) runs.delete(this.conversation.id);
    if (!this.#abandoned) save(this.conversation, { touch: true });
    this.changed(this);
  }

  /** Stop: what was written stays. */
  stop() {
    this.#abort.abort();
  }

  /** Stop, and keep nothing any more: the conversation or the page is gone. */
  abandon() {
    this.#abandoned = true;
    this.stop();
  }

  /** @returns {number} tokens a second so far, from the first on; 0 while that says nothing */
  get speed() {
    const { message } = this;
    const tokens = message.usage?.completion_tokens ?? this.#pieces;
    const seconds = (this.#last - this.#first) / 1000;
    return tokens > 2 && seconds > 0 ? (tokens - 1) / seconds : 0;
  }

  #take({ text, finish, guard, usage }) {
    const { message } = this;
    if (guard) message.guard = guard;
    if (usage) message.usage = usage;
    if (finish) message.finish = finish;
    if (text) {
      this.#last = performance.now();
      this.#first ||= this.#last;
      message.first_ms = this.#first - this.#begun;
      message.content += text;
      this.#pieces += 1;
    }
    if (this.speed) message.speed = this.speed;
    if (performance.now() - this.#saved > SAVE_EVERY_MS) {
      this.#saved = performance.now();
      save(this.conversation);
    }
    this.changed(this);
  }

  #fail(error) {
    const { message } = this;
    if (this.#abandoned) return;
    if (error.name === "AbortError") {
      message.state = "stopped";
      return;
    }
    message.state = "failed";
    message.error = error.message;
    message.code = error.code ?? null;
    if (error.guard) message.guard = error.guard;
  }
}

/** What is asked: answers that failed without a word are left out. */
function requestBody({ model, system, messages }) {
  const opening = system.trim() ? [{ role: "system", content: system }] : [];
  const said = messages.filter(({ content }) => content.trim() !== "");
  const turns = said.map(({ role, content }) => ({ role, content }));
  return { model, messages: [...opening, ...turns], ...sampling() };
}
