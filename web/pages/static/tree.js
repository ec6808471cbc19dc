// The supervision tree: rows kept by process, opened and closed by the person, changed in place at each look.

import { get } from "./api.js";
import { count, span } from "./format.js";

const PAGE = 50;

export class Tree {
  /** `chosen(node)` is called when a process is clicked. */
  constructor(list, chosen) {
    this.list = list;
    this.chosen = chosen;
    this.open = new Map(); // path -> whether the person opened it
    this.pages = new Map(); // path -> how many children of a dynamic supervisor are wanted
    this.members = new Map(); // path -> {children, cursor} of a dynamic supervisor
    list.addEventListener("keydown", (event) => this.#keys(event));
  }

  async update(root) {
    await Promise.all([...this.pages].map(([path, { pid, wanted }]) => this.#read(path, pid, wanted)));
    this.root = root;
    this.#draw();
  }

  #draw() {
    fill(this.list, [this.root], (node, element) => this.#item(node, node.id, 0, element));
  }

  #item(node, path, depth, element) {
    const item = element ?? made("li", { role: "treeitem" }, row(), made("ul", { role: "group" }));
    const inside = node.children ?? this.members.get(path)?.children ?? [];
    const opens = inside.length > 0 || Boolean(node.paged);
    const open = opens && (this.open.get(path) ?? (depth < 2 && !node.paged));
    this.#row(item.firstElementChild, node, path, opens, open);
    item.setAttribute("aria-label", node.id);
    if (opens) item.setAttribute("aria-expanded", String(open));
    const list = item.lastElementChild;
    list.hidden = !open;
    if (!open) return item;
    fill(list, inside, (child, known) => this.#item(child, `${path}/${child.pid ?? child.id}`, depth + 1, known));
    if (node.paged) this.#more(list, node, path);
    return item;
  }

  #row(line, node, path, opens, open) {
    const [turn, state, who, marks] = line.children;
    turn.style.visibility = opens ? "" : "hidden";
    turn.setAttribute("aria-expanded", String(open));
    turn.setAttribute("aria-label", `${open ? "Close" : "Open"} ${node.id}`);
    turn.onclick = () => this.#turn(node, path, !open);
    state.dataset.status = node.status;
    state.title = node.status;
    const small = made("small");
    small.textContent = [node.kind, node.strategy].filter(Boolean).join(" · ").replaceAll("_", " ");
    who.replaceChildren(node.id, small);
    who.onclick = () => this.chosen(node);
    marks.replaceChildren(...chips(node));
  }

  #turn(node, path, open) {
    this.open.set(path, open);
    if (!node.paged) return this.#draw();
    if (open) this.#want(node, path, PAGE);
    else this.pages.delete(path);
    return this.#draw();
  }

  async #want(node, path, wanted) {
    this.pages.set(path, { pid: node.pid, wanted });
    await this.#read(path, node.pid, wanted);
    this.#draw();
  }

  async #read(path, pid, wanted) {
    const page = await get(`/api/supervisor/children?pid=${encodeURIComponent(pid)}&limit=${wanted}`).catch(() => null);
    if (page) this.members.set(path, page);
  }

  #more(list, node, path) {
    const page = this.members.get(path);
    if (!page?.cursor) return;
    const button = made("button", { type: "button", class: "quiet" });
    const shown = page.children.length;
    button.textContent = `${count(node.counts.active - shown)} more, show ${PAGE}`;
    button.onclick = () => this.#want(node, path, shown + PAGE);
    list.append(made("li", { class: "page", role: "none" }, button));
  }

  #keys(event) {
    const lines = [...this.list.querySelectorAll(".who")].filter((line) => line.offsetParent);
    const at = lines.indexOf(document.activeElement);
    if (at < 0) return;
    const turn = lines[at].parentElement.firstElementChild;
    const open = turn.getAttribute("aria-expanded") === "true";
    const act = {
      ArrowDown: () => lines[at + 1]?.focus(),
      ArrowUp: () => lines[at - 1]?.focus(),
      ArrowRight: () => !open && turn.style.visibility !== "hidden" && turn.click(),
      ArrowLeft: () => open && turn.click(),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }
}

function chips(node) {
  const found = [];
  const chip = (text, mood, title) => {
    const element = made("span", { class: "mark-chip", "data-mood": mood, title });
    element.textContent = text;
    found.push(element);
  };
  if (node.restarts) chip(`↻ ${count(node.restarts)}`, "warn", "Restarts");
  if (node.mailbox) chip(`✉ ${count(node.mailbox)}`, node.mailbox > 100 ? "bad" : "", "Messages waiting");
  if (node.counts) chip(count(node.counts.active), "", "Children");
  const age = made("span");
  age.textContent = node.started_at ? span(Math.max(0, Date.now() / 1000 - node.started_at)) : node.status;
  found.push(age);
  return found;
}

function row() {
  return made(
    "div",
    { class: "row" },
    made("button", { type: "button", class: "turn" }),
    made("span", { class: "state" }),
    made("button", { type: "button", class: "who" }),
    made("span", { class: "marks" }),
  );
}

/** Makes `list` show `nodes` in order, keeping the elements of those it showed before. */
function fill(list, nodes, draw) {
  const known = new Map([...list.children].map((element) => [element.dataset.key, element]));
  const wanted = nodes.map((node) => {
    const key = node.pid ?? node.id;
    const element = draw(node, known.get(key));
    element.dataset.key = key;
    return element;
  });
  wanted.forEach((element, index) => {
    if (list.children[index] !== element) list.insertBefore(element, list.children[index] ?? null);
  });
  while (list.children.length > wanted.length) list.lastElementChild.remove();
}

export function made(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value) element.setAttribute(key, value);
  element.append(...children);
  return element;
}
