// The operators' page: looks at the server every two seconds while it is seen, and acts when told to.

import { get, keepToken, post, tokenFromAddress } from "./api.js";
import { ago, clock, count, sentence, size, span } from "./format.js";
import { Models } from "./models.js";
import { startTheme } from "./theme.js";
import { Tree, made } from "./tree.js";

const EVERY = 2000; // milliseconds between two looks
const SELDOM = 15; // looks between two at what seldom changes
const part = (id) => document.getElementById(id);
const tree = new Tree(part("tree"), (node) => showProcess(node));
const models = new Models(part("models"), part("import"), part("import-said"));
let failures = 0;
let looks = 0;

async function look() {
  try {
    const [{ tree: root }, overview] = await Promise.all([get("/api/supervisor"), get("/api/overview")]);
    await tree.update(root);
    draw(overview);
    if (looks % SELDOM === 0) await models.update();
    looks += 1;
    say("open", "Live");
    failures = 0;
    part("refusal").hidden = true;
  } catch (problem) {
    failures += 1;
    if (problem.status === 401) await askForToken();
    else if (problem.status) refuse(problem);
    say("waiting", "Reconnecting");
  }
}

function say(state, words) {
  part("link").dataset.state = state;
  part("link-text").textContent = words;
}

function refuse(problem) {
  part("refusal").hidden = false;
  part("refusal").textContent = problem.message;
}

function draw(overview) {
  drawAlarms(overview.alarms);
  drawTiles(overview);
  const restarts = overview.counts.restarted ?? 0;
  part("tree-words").textContent = `${count(overview.node.processes)} processes` + (restarts ? `, ${count(restarts)} restarts` : "");
  replace(part("queues"), overview.queues.map(queue), "No queue is open.");
  replace(part("providers"), overview.providers.map((one) => provider(one, overview.routes)), "No provider is set up.");
  replace(part("recent"), overview.recent.slice(-12).reverse().map(trouble), "Nothing went wrong since the start.");
  facts(part("server"), server(overview));
}

function drawTiles({ node, journal, queues, tasks, sockets }) {
  const waiting = queues.reduce((sum, queue) => sum + (queue.available ?? 0) + (queue.scheduled ?? 0) + (queue.retryable ?? 0), 0);
  const running = queues.reduce((sum, queue) => sum + (queue.executing ?? 0), 0);
  replace(part("tiles"), [
    tile(count(tasks.live), "tasks in memory"),
    tile(count(running), "jobs running"),
    tile(count(waiting), "jobs waiting", waiting > 1000 ? "warn" : ""),
    tile(count(sockets), "sockets"),
    tile(journal.up ? "Up" : `Away ${span(Date.now() / 1000 - journal.since)}`, journal.buffered ? `database, ${count(journal.buffered)} buffered` : "database", journal.up ? "good" : "bad"),
    tile(size(node.memory_bytes), "memory"),
  ]);
}

// Changed only when the words do, so that a screen reader is not told the same at each look.
function drawAlarms(alarms) {
  const said = JSON.stringify(alarms);
  if (said === part("alarms").dataset.said) return;
  part("alarms").dataset.said = said;
  part("alarms").replaceChildren(...alarms.map(({ severity, message }) => {
    const notice = made("p", { class: severity === "critical" ? "notice" : "notice mild" });
    notice.textContent = message;
    return notice;
  }));
}

function tile(figure, words, mood = "") {
  const box = made("div", { class: "tile", "data-mood": mood });
  const strong = made("b");
  strong.textContent = figure;
  const label = made("span");
  label.textContent = words;
  box.append(strong, label);
  return box;
}

function queue(known) {
  const { name, limit, executing = 0, available = 0, scheduled = 0, retryable = 0, paused } = known;
  const button = made("button", { type: "button", class: "quiet" });
  button.textContent = paused ? "Resume" : "Pause";
  button.onclick = () => act(button, () => post(`/api/queues/${encodeURIComponent(name)}/${paused ? "resume" : "pause"}`));
  const title = made("b");
  title.textContent = name;
  const head = made("div", { class: "queue-head" }, title, made("span", { class: "spacer" }), button);
  if (paused) title.after(badge("Paused"));
  const full = made("div");
  full.style.setProperty("--full", limit ? Math.min(1, executing / limit) : 0);
  const words = made("div", { class: "queue-words" });
  words.textContent = [
    `${count(executing)} of ${count(limit ?? 0)} running`,
    `${count(available)} waiting`,
    scheduled + retryable ? `${count(scheduled + retryable)} later` : "",
    known.oldest_age > 1 ? `oldest ${span(known.oldest_age)}` : "",
    known.estimated_wait > 1 ? `about ${span(known.estimated_wait)} to wait` : "",
    known.discarded ? `${count(known.discarded)} dead letters` : "",
  ].filter(Boolean).join(" · ");
  return made("div", { class: "queue" }, head, made("div", { class: "meter" }, full), words);
}

function provider(known, routes) {
  const title = made("b");
  title.textContent = known.name;
  const head = made("div", { class: "queue-head" }, title, made("span", { class: "spacer" }), badge(known.state));
  const words = made("div", { class: "queue-words" });
  const resting = routes.filter((route) => route.provider === known.name && route.rests_for_seconds > 0);
  words.textContent = [
    known.running ? `${count(known.running)} at work` : "",
    ...resting.map((route) => `${route.model} rests for ${span(route.rests_for_seconds)}`),
  ].filter(Boolean).join(" · ");
  return made("div", { class: "queue" }, head, words);
}

function trouble({ at, what, words }) {
  const when = made("time");
  when.textContent = clock(at);
  const line = made("div", { class: "trouble", "data-what": what }, when);
  const said = made("span");
  said.textContent = words;
  line.append(said);
  return line;
}

function badge(text) {
  const element = made("span", { class: "badge" });
  element.textContent = sentence(text);
  return element;
}

function server({ node, journal, endpoint }) {
  const faults = Object.values(endpoint.faults).reduce((sum, one) => sum + one, 0);
  return {
    Version: node.version,
    Python: node.python,
    "OS process": String(node.pid),
    "Up for": span(Date.now() / 1000 - node.started_at),
    "CPU time": span(node.cpu_seconds),
    Connections: count(endpoint.connections),
    ...(faults ? { "Faults of clients": count(faults) } : {}),
    "Journal buffer": `${count(journal.buffered)} of ${count(journal.bound)}`,
    ...(journal.last_error ? { "Last error": journal.last_error } : {}),
  };
}

function facts(list, known) {
  const lines = Object.entries(known).flatMap(([name, value]) => {
    const term = made("dt");
    term.textContent = name;
    const said = made("dd");
    said.textContent = value;
    return [term, said];
  });
  list.replaceChildren(...lines);
}

function replace(box, elements, nothing = "") {
  if (elements.length) return box.replaceChildren(...elements);
  const words = made("p", { class: "nothing" });
  words.textContent = nothing;
  return box.replaceChildren(words);
}

// --- one process ---------------------------------------------------------------------------------------

async function showProcess(node) {
  part("process-title").textContent = node.id;
  part("process-problem").hidden = true;
  part("process-stack").hidden = true;
  facts(part("process-facts"), { Pid: node.pid ?? "none", Status: node.status });
  part("process-actions").replaceChildren();
  part("process").showModal();
  if (!node.pid) return;
  try {
    const known = await get(`/api/processes/${encodeURIComponent(node.pid)}`);
    facts(part("process-facts"), described(known));
    part("process-stack").hidden = !known.stack;
    part("process-stack").textContent = known.stack;
    part("process-actions").replaceChildren(...actions(known));
  } catch (problem) {
    complain(problem);
  }
}

const HIDDEN = new Set(["killable", "stack", "task"]);

function described(known) {
  const said = {};
  for (const [name, value] of Object.entries(known)) {
    if (value === null || value === "" || (Array.isArray(value) && !value.length) || HIDDEN.has(name)) continue;
    if (name === "started_at") said.Started = `${clock(value)}, ${ago(value)}`;
    else if (name === "memory_bytes") said.Memory = size(value);
    else if (Array.isArray(value)) said[sentence(name)] = value.join(", ");
    else said[sentence(name)] = typeof value === "object" ? JSON.stringify(value) : String(value);
  }
  for (const [name, value] of Object.entries(known.task ?? {})) said[`Task: ${name.replaceAll("_", " ")}`] = String(value);
  return said;
}

function actions(known) {
  const buttons = [];
  if (known.task_id) buttons.push(action("Cancel the task", () => post(`/api/tasks/${known.task_id}/cancel`)));
  if (known.killable) buttons.push(action("Kill", () => post(`/api/processes/${encodeURIComponent(known.pid)}/kill`), true));
  return buttons;
}

/** A button that asks once more before it does what cannot be undone. */
function action(words, run) {
  const button = made("button", { type: "button", class: "quiet danger" });
  button.textContent = words;
  let armed = false;
  button.onclick = () => {
    if (!armed) {
      armed = true;
      button.textContent = `${words}: click again`;
      return undefined;
    }
    return act(button, run, () => part("process").close());
  };
  return button;
}

async function act(button, run, after = () => {}) {
  button.disabled = true;
  try {
    await run();
    part("announce").textContent = `${button.textContent}: done`;
    after();
  } catch (problem) {
    if (part("process").open) complain(problem);
    else refuse(problem);
  } finally {
    button.disabled = false;
    look();
  }
}

function complain(problem) {
  part("process-problem").hidden = false;
  part("process-problem").textContent = problem.message;
}

function askForToken() {
  const dialog = part("token-dialog");
  if (!dialog.open) dialog.showModal();
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
  tokenFromAddress();
  part("process-close").addEventListener("click", () => part("process").close());
  part("link").addEventListener("click", () => look());
  for (;;) {
    if (!document.hidden) await look();
    const wait = EVERY * Math.min(8, 2 ** failures);
    await new Promise((resolve) => { setTimeout(resolve, wait); });
  }
}

start();
