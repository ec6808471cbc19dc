// The tasks page: puts api, socket, feed, cards and composer together.

import { get, keepToken, token, tokenFromAddress } from "./api.js";
import { Card } from "./card.js";
import { Composer } from "./composer.js";
import { Feed } from "./feed.js";
import { startLink } from "./link.js";
import { Socket } from "./phoenix.js";
import { TERMINAL, Tasks } from "./tasks.js";
import { startTheme } from "./theme.js";

const SHOWN = {
  all: () => true,
  running: (task) => !TERMINAL.has(task.status),
  completed: (task) => task.status === "completed",
  failed: (task) => task.status === "failed" || task.status === "cancelled",
};
const EMPTY = {
  all: "Nothing yet. Ask for something above and watch it being made.",
  running: "Nothing is running.",
  completed: "Nothing is done yet.",
  failed: "Nothing failed.",
};

const part = (id) => document.getElementById(id);
const list = part("tasks");
const cards = new Map();
const dirty = new Map(); // id -> "changed" | "text": drawn at most once a frame
let filter = "all";
let cursor = null;
let drawing = false;

const tasks = new Tasks((id, what) => {
  if (what === "removed") return removeCard(id);
  if (what !== "text" || !dirty.has(id)) dirty.set(id, what);
  if (drawing) return undefined;
  drawing = true;
  // A hidden tab gets no animation frames; its cards are to be true all the same.
  (document.hidden ? queueMicrotask : requestAnimationFrame)(draw);
  return undefined;
});
const socket = new Socket(new URL("/socket", location.href).href, token);
const feed = new Feed(socket, tasks);
const composer = new Composer(part("composer"), async ({ task_id: id, ...accepted }) => {
  tasks.expect(id, accepted);
  if (filter !== "all" && filter !== "running") choose("all");
  await feed.refresh(id);
  feed.watch(id);
});

function draw() {
  drawing = false;
  for (const [id, what] of dirty) drawCard(tasks.get(id), what);
  dirty.clear();
  tally();
}

function drawCard(task, what) {
  if (!task) return;
  const card = cards.get(task.id);
  if (!card) return addCard(task);
  const before = card.element.dataset.status;
  if (what === "text") card.text(task);
  else card.update(task);
  card.element.hidden = !SHOWN[filter](task);
  if (before !== task.status && TERMINAL.has(task.status)) announce(task);
}

function addCard(task) {
  const card = new Card(task, feed);
  cards.set(task.id, card);
  card.element.hidden = !SHOWN[filter](task);
  const later = [...list.children].find((other) => tasks.get(other.dataset.task)?.created_at < task.created_at);
  list.insertBefore(card.element, later ?? null);
}

function removeCard(id) {
  cards.get(id)?.element.remove();
  cards.delete(id);
  tally();
}

function announce(task) {
  const words = { completed: "is done", failed: "failed", cancelled: "was cancelled" };
  part("announce").textContent = `${task.input.prompt ?? task.model} ${words[task.status]}`;
}

function tally() {
  const all = tasks.all();
  const running = all.filter(SHOWN.running).length;
  document.querySelector('[data-count="running"]').textContent = running ? String(running) : "";
  part("empty").hidden = all.some(SHOWN[filter]);
  part("empty").textContent = EMPTY[filter];
  document.title = running ? `(${running}) Elwift` : "Elwift";
}

function choose(name) {
  filter = name;
  for (const button of part("filters").children) button.setAttribute("aria-pressed", String(button.dataset.filter === name));
  for (const card of cards.values()) card.element.hidden = !SHOWN[filter](card.task);
  tally();
}

async function older() {
  const query = cursor ? `?cursor=${encodeURIComponent(cursor)}` : "";
  const page = await get(`/api/tasks${query}`);
  cursor = page.cursor;
  part("more").hidden = !cursor;
  for (const task of page.tasks) tasks.put(task);
}

/** Shows the dialog until a token is given that the server takes. */
async function whoAmI() {
  for (;;) {
    try {
      return await get("/api/users/me");
    } catch (problem) {
      if (problem.status !== 401) {
        await new Promise((resolve) => { setTimeout(resolve, 2000); });
        continue;
      }
      await askForToken();
    }
  }
}

function askForToken() {
  const dialog = part("token-dialog");
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      keepToken(part("token").value);
      part("token").value = "";
      resolve();
    }, { once: true });
  });
}

async function start() {
  startTheme(part("theme"));
  startLink(part("link"), part("link-text"), part("link-said"), socket);
  tokenFromAddress();
  part("filters").addEventListener("click", ({ target }) => target.closest("button") && choose(target.closest("button").dataset.filter));
  part("more").addEventListener("click", () => older().catch((problem) => announceProblem(problem)));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.closest("input, textarea, select")) return;
    event.preventDefault();
    part("prompt").focus();
  });
  setInterval(() => { for (const card of cards.values()) if (!card.element.hidden) card.tick(); }, 1000);

  const me = await whoAmI();
  part("to-operators").hidden = !me.operator;
  composer.setModels(await get("/api/models"));
  await older();
  tally();
  feed.followUser(me.user);
  feed.watchAll();
  socket.connect();
}

function announceProblem(problem) {
  part("empty").hidden = false;
  part("empty").textContent = problem.message;
}

start().catch(announceProblem);
