// One task as a card: made once, then changed in place, so that nothing jumps while text streams in.

import { get, post } from "./api.js";
import { ago, clock, count, sentence, size, span } from "./format.js";
import { TERMINAL } from "./tasks.js";

const LABELS = { queued: "Queued", processing: "Running", completed: "Done", failed: "Failed", cancelled: "Cancelled" };

export class Card {
  /** `feed.refresh(id)` and `feed.watch(id)` are used after actions. */
  constructor(task, feed) {
    this.feed = feed;
    this.id = task.id;
    this.element = document.getElementById("card").content.firstElementChild.cloneNode(true);
    this.element.dataset.task = task.id;
    this.part = Object.fromEntries([...this.element.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part]));
    this.shown = "";
    this.part.cancel.addEventListener("click", () => this.#act("cancel", this.part.cancel));
    this.part.retry.addEventListener("click", () => this.#act("retry", this.part.retry));
    this.part.copy.addEventListener("click", () => this.#copy());
    this.part.log.addEventListener("toggle", () => this.#openLog());
    this.update(task);
  }

  update(task) {
    this.task = task;
    const { part } = this;
    const title = task.input.prompt || `${task.model} task`;
    if (part.title.textContent !== title) part.title.textContent = title;
    this.element.dataset.status = task.status;
    part.badge.textContent = task.error?.will_retry_at && task.status === "queued" ? "Retrying" : LABELS[task.status];
    this.tick();
    this.#progress(task);
    this.text(task);
    this.#error(task);
    this.#outputs(task);
    part.cancel.hidden = TERMINAL.has(task.status);
    part.retry.hidden = task.status !== "failed";
    part.copy.hidden = !(task.response && TERMINAL.has(task.status));
    if (task.seq !== this.logged) this.#openLog();
  }

  /** Only the text grew. */
  text(task) {
    const box = this.part.text;
    const said = task.response.trimStart(); // models like to begin with an empty line
    box.hidden = !said;
    box.classList.toggle("streaming", task.status === "processing");
    if (said === this.shown) return;
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    if (said.startsWith(this.shown) && box.firstChild) box.firstChild.appendData(said.slice(this.shown.length));
    else box.textContent = said;
    this.shown = said;
    if (atEnd) box.scrollTop = box.scrollHeight;
  }

  /** What changes as time goes by. */
  tick() {
    const { task } = this;
    const words = [task.model];
    if (task.status === "queued" && task.error?.will_retry_at) {
      const wait = task.error.will_retry_at - Date.now() / 1000;
      words.push(wait > 1 ? `next attempt in ${span(wait)}` : "next attempt soon");
    }
    const wait = task.status === "queued" && this.feed.tasks.waits.get(task.id);
    if (wait?.position > 0) words.push(`${count(wait.position)} ahead`);
    if (wait?.until > Date.now() / 1000 + 1) words.push(`starts in about ${span(wait.until - Date.now() / 1000)}`);
    if (task.status === "processing" && task.started_at) words.push(span(Math.max(0, Date.now() / 1000 - task.started_at)));
    if (task.completed_at && task.started_at) words.push(`took ${span(Math.max(0, task.completed_at - task.started_at))}`);
    if (task.attempt > 1) words.push(`attempt ${task.attempt}`);
    if (task.usage?.output_tokens) words.push(`${task.usage.output_tokens} tokens`);
    words.push(ago(task.created_at));
    const said = words.join(" · ");
    if (this.part.meta.textContent !== said) this.part.meta.textContent = said;
  }

  #progress(task) {
    const { part } = this;
    const percent = Math.round(task.progress * 100);
    part.progress.hidden = task.status === "completed" || (TERMINAL.has(task.status) && percent === 0);
    part.progress.classList.toggle("waiting", !TERMINAL.has(task.status) && percent === 0);
    part.bar.setAttribute("aria-valuenow", percent);
    part.bar.setAttribute("aria-valuetext", `${percent} percent, ${LABELS[task.status]}`);
    part.fill.style.setProperty("--done", task.progress);
    part.percent.textContent = percent ? `${percent} %` : "";
    const words = [task.step && (/^\d+ ?\/ ?\d+$/.test(task.step) ? `step ${task.step}` : task.step), task.message];
    if (task.eta_seconds > 0 && !TERMINAL.has(task.status)) words.push(`about ${span(task.eta_seconds)} left`);
    part.step.textContent = words.filter(Boolean).join(" · ");
  }

  #error({ error, status }) {
    const { part } = this;
    part.error.hidden = !error || status === "completed";
    if (!error) return;
    part.error.classList.toggle("mild", Boolean(error.will_retry_at));
    part.errorMessage.textContent = error.message;
    part.errorAction.textContent = error.action ?? "";
  }

  #outputs({ outputs = [] }) {
    const key = outputs.map((output) => output.content_url).join("\n");
    if (key === this.outputsShown) return;
    this.outputsShown = key;
    this.part.outputs.hidden = outputs.length === 0;
    this.part.outputs.replaceChildren(...outputs.map(figure));
  }

  async #act(action, button) {
    button.disabled = true;
    try {
      const task = await post(`/api/tasks/${this.id}/${action}`);
      this.feed.tasks.put(task);
      if (!TERMINAL.has(task.status)) this.feed.watch(this.id);
      this.#say("");
    } catch (problem) {
      this.#say(problem.message);
      this.feed.refresh(this.id);
    } finally {
      button.disabled = false;
    }
  }

  async #copy() {
    try {
      await navigator.clipboard.writeText(this.task.response);
      this.part.copy.textContent = "Copied";
    } catch {
      this.part.copy.textContent = "Cannot copy here";
    }
    setTimeout(() => { this.part.copy.textContent = "Copy"; }, 1500);
  }

  #say(text) {
    this.part.problem.textContent = text;
    this.part.problem.hidden = !text;
  }

  async #openLog() {
    if (!this.part.log.open) return;
    this.logged = this.task.seq;
    try {
      const { events } = await get(`/api/tasks/${this.id}/events`);
      this.part.events.replaceChildren(...events.map(logLine));
    } catch (problem) {
      this.part.events.replaceChildren(line("", problem.message));
    }
  }
}

function logLine(event) {
  const said = [sentence(event.type)];
  if (event.attempt > 1) said.push(`attempt ${event.attempt}`);
  if (event.payload.message) said.push(event.payload.message);
  if (event.actor !== "worker") said.push(`by ${event.actor}`);
  return line(clock(event.at), said.join(" · "));
}

function line(when, what) {
  const item = document.createElement("li");
  const time = document.createElement("time");
  time.textContent = when;
  item.append(time, ` ${what}`);
  return item;
}

function figure(output) {
  const box = document.createElement("figure");
  const known = { image: "img", video: "video", audio: "audio" }[output.type];
  if (known && !output.expired) {
    const media = document.createElement(known);
    media.src = output.content_url;
    if (known === "img") Object.assign(media, { loading: "lazy", alt: "Generated image" });
    else media.controls = true;
    const { width, height } = output.dimensions ?? {};
    if (width && height) Object.assign(media, { width, height });
    box.append(media);
  }
  const caption = document.createElement("figcaption");
  const about = `${output.format.toUpperCase()}, ${size(output.file_size_bytes)}`;
  if (output.expired) {
    caption.textContent = `${about}, not kept any more`;
  } else {
    const link = document.createElement("a");
    Object.assign(link, { href: output.content_url, target: "_blank", rel: "noopener" });
    link.textContent = about;
    caption.append(link);
  }
  box.append(caption);
  return box;
}
