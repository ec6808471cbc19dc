// The form that makes tasks: a prompt, a model, and the inputs that the model's schema names.

import { Problem, post } from "./api.js";
import { sentence } from "./format.js";

const KEPT = "elwift.model";
const WAITS = [500, 1000, 2000, 4000, 6000, 8000, 8000, 8000, 8000, 8000]; // milliseconds between tries of an unheard request

export class Composer {
  /** `created(acknowledgement)` is called with the server's word on each new task. */
  constructor(form, created) {
    this.form = form;
    this.created = created;
    this.models = [];
    const part = (id) => document.getElementById(id);
    Object.assign(this, { prompt: part("prompt"), model: part("model"), options: part("options"), send: part("send") });
    Object.assign(this, { toggle: part("options-toggle"), problem: part("composer-problem") });
    form.addEventListener("submit", (event) => { event.preventDefault(); this.#submit(); });
    this.prompt.addEventListener("input", () => this.#grow());
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); form.requestSubmit(); }
    });
    this.model.addEventListener("change", () => this.#choose(this.model.value));
    this.toggle.addEventListener("click", () => this.#open(this.options.hidden));
    if (/Mac|iPhone|iPad/.test(navigator.platform)) part("send-hint").textContent = "⌘ ↵";
  }

  setModels({ models, default: standard }) {
    this.models = models;
    this.model.replaceChildren(...models.map((model) => new Option(model.name, model.name)));
    this.model.disabled = models.length === 0;
    const kept = localStorage.getItem(KEPT);
    const known = models.some((model) => model.name === kept);
    this.#choose(known ? kept : standard ?? models[0]?.name);
  }

  get chosen() {
    return this.models.find((model) => model.name === this.model.value);
  }

  #choose(name) {
    this.model.value = name;
    localStorage.setItem(KEPT, name);
    const fields = inputs(this.chosen);
    this.options.replaceChildren(this.options.firstElementChild, ...fields.map(field));
    this.toggle.hidden = fields.length === 0;
    this.#open(fields.length > 0 && !takesPrompt(this.chosen));
    this.prompt.placeholder = takesPrompt(this.chosen) ? "Ask for something…" : "Name this run (optional)";
    this.#say(null);
  }

  #open(open) {
    this.options.hidden = !open;
    this.toggle.setAttribute("aria-expanded", String(open));
  }

  #grow() {
    this.prompt.style.height = "auto";
    this.prompt.style.height = `${Math.min(this.prompt.scrollHeight + 2, innerHeight * 0.4)}px`;
  }

  async #submit() {
    const prompt = this.prompt.value.trim();
    if (!prompt && takesPrompt(this.chosen)) return this.prompt.focus();
    const body = { model: this.model.value, input: this.#input() };
    if (prompt) body.prompt = prompt;
    this.send.disabled = true;
    this.#say(null);
    try {
      const accepted = await this.#post(body, crypto.randomUUID?.() ?? String(Math.random()).slice(2));
      this.prompt.value = "";
      this.#grow();
      this.created(accepted);
    } catch (problem) {
      this.#say(problem);
    } finally {
      this.send.disabled = false;
      this.prompt.focus();
    }
  }

  // The key makes trying again safe: a request whose answer was lost does not make a second task.
  async #post(body, key) {
    for (const wait of WAITS) {
      try {
        return await post("/api/tasks", body, { "Idempotency-Key": key });
      } catch (problem) {
        if (problem.code !== "unreachable" && problem.code !== "draining") throw problem;
        this.#say(new Problem({ detail: "The server cannot be reached. Trying again…" }));
        await new Promise((resolve) => { setTimeout(resolve, wait); });
      }
    }
    return post("/api/tasks", body, { "Idempotency-Key": key });
  }

  #input() {
    const given = {};
    for (const input of this.options.querySelectorAll("[name]")) {
      const value = read(input);
      if (value !== undefined) given[input.name] = value;
    }
    return given;
  }

  #say(problem) {
    this.problem.hidden = !problem;
    for (const input of this.options.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
    if (!problem) return;
    const wait = problem.retryAfter ? ` (in about ${Math.ceil(problem.retryAfter)} s)` : "";
    this.problem.textContent = problem.message.replace(/^\/(input\/)?/, "") + wait;
    for (const { where = "" } of problem.details) {
      const input = this.options.querySelector(`[name="${CSS.escape(where.split("/")[2] ?? "")}"]`);
      if (input) { input.setAttribute("aria-invalid", "true"); this.#open(true); input.focus(); }
    }
  }
}

/** Whether the model wants a prompt: its schema requires one, or offers it as one way to ask. */
function takesPrompt(model) {
  const { required = [], anyOf = [], oneOf = [] } = model?.input_schema ?? {};
  return [{ required }, ...anyOf, ...oneOf].some((way) => way.required?.includes("prompt"));
}

/** The properties of the model's input that can be asked for in a line: numbers, words, choices, yes or no. */
function inputs(model) {
  const properties = Object.entries(model?.input_schema?.properties ?? {});
  return properties
    .map(([name, schema]) => ({ name, schema, kind: kind(schema), standard: model.defaults?.[name] ?? schema.default }))
    .filter(({ name, kind }) => name !== "prompt" && kind);
}

function kind(schema) {
  if (schema.enum) return "choice";
  const types = [schema.type, ...(schema.anyOf ?? []).map((one) => one.type)].flat();
  return ["boolean", "integer", "number", "string"].find((type) => types.includes(type));
}

function field({ name, schema, kind, standard }) {
  const label = document.createElement("label");
  label.className = kind === "boolean" ? "field check" : "field";
  const words = document.createElement("span");
  words.textContent = schema.title ?? sentence(name);
  if (schema.description) label.title = schema.description;
  const input = kind === "choice" ? choice(schema, standard) : plain(schema, kind, standard);
  input.name = name;
  label.append(words, input);
  return label;
}

function choice({ enum: choices }, standard) {
  const select = document.createElement("select");
  select.dataset.kind = "choice";
  if (standard === undefined) select.add(new Option("none", ""));
  for (const value of choices) select.add(new Option(String(value), JSON.stringify(value), false, value === standard));
  return select;
}

function plain(schema, kind, standard) {
  const input = document.createElement("input");
  input.dataset.kind = kind;
  input.type = { boolean: "checkbox", string: "text" }[kind] ?? "number";
  if (kind === "boolean") input.checked = Boolean(standard);
  else if (standard !== undefined && standard !== null) input.value = standard;
  else input.placeholder = "none";
  if (kind === "number") input.step = "any";
  if (schema.minimum !== undefined) input.min = schema.minimum;
  if (schema.maximum !== undefined) input.max = schema.maximum;
  return input;
}

function read(input) {
  if (input.dataset.kind === "boolean") return input.checked;
  if (input.value === "") return undefined;
  if (input.dataset.kind === "choice") return JSON.parse(input.value);
  return input.dataset.kind === "string" ? input.value : Number(input.value);
}
