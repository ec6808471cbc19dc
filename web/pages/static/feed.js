// Keeps the known tasks true: a channel for each one that runs, the user's own topic for what happens elsewhere,
// HTTP for history. After a reconnect each channel resumes from the last event it has seen.

import { get } from "./api.js";
import { TERMINAL } from "./tasks.js";

const WATCHED = 80; // channels at once; the server takes 100 a socket

export class Feed {
  constructor(socket, tasks) {
    this.socket = socket;
    this.tasks = tasks;
    this.channels = new Map();
    this.asked = new Map(); // id -> a read of it that is under way
  }

  /** Follows the user's own topic: tasks made on another device show here, and what is not watched stays true. */
  followUser(user) {
    this.socket
      .channel(`user:${user}`)
      .on({
        event: (name, payload) => name.startsWith("task_") && this.#heard(payload),
        joined: () => this.#resync(),
      })
      .join();
  }

  /** Watches each task that is not over, newest first, as many as a socket may have. */
  watchAll() {
    const live = this.tasks.all().filter((task) => !TERMINAL.has(task.status));
    live.sort((one, other) => other.created_at - one.created_at);
    for (const task of live) this.watch(task.id);
  }

  watch(id) {
    if (this.channels.has(id) || this.channels.size >= WATCHED) return;
    const channel = this.socket.channel(`task:${id}`, () => ({ last_seq: this.tasks.get(id)?.seq ?? 0 }));
    this.channels.set(id, channel);
    channel
      .on({
        event: (name, payload) => this.#happened(id, name, payload),
        joined: (response) => this.#joined(id, response),
        refused: (response) => response.reason === "unauthorized" && this.#forget(id),
        closed: () => this.#ended(id),
      })
      .join();
  }

  /** Asks for a task as it is now; several who ask at once share one answer. */
  refresh(id) {
    if (!this.asked.has(id)) {
      const read = get(`/api/tasks/${id}`)
        .then((task) => this.tasks.put(task))
        .catch((problem) => { if (problem.code === "unknown_task") this.tasks.remove(id); })
        .finally(() => this.asked.delete(id));
      this.asked.set(id, read);
    }
    return this.asked.get(id);
  }

  async #resync() {
    const page = await get("/api/tasks").catch(() => null);
    for (const task of page?.tasks ?? []) this.tasks.put(task);
    this.watchAll();
  }

  async #heard({ task_id: id }) {
    if (this.channels.has(id)) return;
    await this.refresh(id);
    const task = this.tasks.get(id);
    if (task && !TERMINAL.has(task.status)) this.watch(id);
  }

  #joined(id, { task }) {
    if (task) this.tasks.put(task);
    else this.refresh(id);
  }

  #happened(id, name, payload) {
    if (this.tasks.apply(id, name, payload) !== "gap") return;
    this.channels.get(id)?.push("get_state").then((response) => this.#joined(id, response)).catch(() => this.refresh(id));
  }

  #forget(id) {
    this.channels.get(id)?.leave();
    this.channels.delete(id);
  }

  #ended(id) {
    this.channels.delete(id);
    const task = this.tasks.get(id);
    if (task && !TERMINAL.has(task.status)) this.refresh(id);
    this.watchAll();
  }
}
