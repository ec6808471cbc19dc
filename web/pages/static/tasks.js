// What the page knows of the tasks: a map of them and the fold of channel events. No DOM, no network.
//
// `listener(id, what)` hears of each change: "added", "changed", "text" (more text at the end) or "removed".

import { length } from "./format.js";

export const TERMINAL = new Set(["completed", "failed", "cancelled"]);

export class Tasks {
  constructor(listener) {
    this.byId = new Map();
    this.waits = new Map(); // id -> {position, until}: what was told when the task was accepted
    this.listener = listener;
  }

  get(id) {
    return this.byId.get(id);
  }

  all() {
    return [...this.byId.values()];
  }

  /** The server's whole word on a task takes the place of what was known; an older word than that is ignored. */
  put(task) {
    const known = this.byId.get(task.id);
    if (known && known.seq > task.seq) return known;
    const next = { ...task, points: length(task.response) };
    this.byId.set(task.id, next);
    this.listener(task.id, known ? "changed" : "added");
    return next;
  }

  /** Keeps what the acknowledgement of a task said of its wait (`until`: Unix time). */
  expect(id, { queue_position: position = 0, estimated_wait_seconds: wait = 0 }) {
    this.waits.set(id, { position, until: Date.now() / 1000 + wait });
  }

  remove(id) {
    if (this.byId.delete(id)) this.listener(id, "removed");
  }

  /** Folds one channel event in. Answers "gap" when text is missing, so that the caller asks for the whole state. */
  apply(id, event, payload) {
    const task = this.byId.get(id);
    if (!task) return "unknown";
    if (payload.seq !== undefined) {
      if (payload.seq <= task.seq) return "old";
      task.seq = payload.seq;
    }
    const fold = FOLDS[event];
    if (!fold) return "ignored";
    const result = fold(task, payload) ?? "folded";
    this.listener(id, result === "text" ? "text" : "changed");
    return result;
  }
}

const BLANK = { progress: 0, step: null, message: null, eta_seconds: null };

const FOLDS = {
  progress(task, { attempt, progress, status, step = null, message = null, eta_seconds = null }) {
    if (TERMINAL.has(task.status) || attempt < task.attempt) return;
    Object.assign(task, { attempt, progress, status, step, message, eta_seconds });
  },
  text_delta(task, { attempt, offset, text }) {
    if (attempt < task.attempt || TERMINAL.has(task.status)) return undefined;
    if (offset > task.points) return "gap";
    const fresh = offset === task.points ? text : [...text].slice(task.points - offset).join("");
    task.response += fresh;
    task.points += length(fresh);
    return "text";
  },
  started(task, { attempt, at }) {
    Object.assign(task, { ...BLANK, attempt, status: "processing", error: null, started_at: task.started_at ?? at });
  },
  reset(task) {
    Object.assign(task, { ...BLANK, response: "", points: 0, outputs: [] });
  },
  llm_response(task, { text, usage = null }) {
    Object.assign(task, { response: text, points: length(text), usage: usage ?? task.usage });
  },
  task_completed(task, { outputs = [], usage = null, at }) {
    Object.assign(task, { ...BLANK, status: "completed", progress: 1, error: null, completed_at: at });
    Object.assign(task, { outputs, usage: usage ?? task.usage });
  },
  error(task, { code, message, retryable, action, will_retry_at, at }) {
    task.error = { code, message, retryable, action, will_retry_at };
    if (will_retry_at === undefined) Object.assign(task, { status: "failed", completed_at: at, eta_seconds: null });
    else task.status = "queued";
  },
  task_cancelled(task, { at }) {
    Object.assign(task, { status: "cancelled", completed_at: at, eta_seconds: null });
  },
};
