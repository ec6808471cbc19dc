// The operators' list of models, and the line in which one of Replicate's is imported.

import { get, post } from "./api.js";
import { sentence } from "./format.js";
import { made } from "./tree.js";

export class Models {
  #list;
  #form;
  #said;

  /** Draws into `list`; `form` has one field, `said` is where an import's end is told. */
  constructor(list, form, said) {
    [this.#list, this.#form, this.#said] = [list, form, said];
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#import();
    });
  }

  async update() {
    const { models, default: usual } = await get("/api/models");
    this.#list.replaceChildren(...models.map((model) => line(model, usual)));
  }

  async #import() {
    const { model, go } = this.#form.elements;
    go.disabled = true;
    this.#tell("Reading its schema…");
    try {
      const { name, version } = await post("/api/models/import", { model: model.value.trim() });
      this.#tell(`${name} is here, version ${version.slice(0, 12)}. Set its price, so that its cost is counted.`);
      this.#form.reset();
      await this.update();
    } catch (problem) {
      this.#tell(problem.message, "bad");
    } finally {
      go.disabled = false;
    }
  }

  #tell(words, mood = "") {
    this.#said.hidden = false;
    this.#said.dataset.mood = mood;
    this.#said.textContent = words;
  }
}

function line({ name, provider, version, category, price = {}, is_active: active }, usual) {
  const title = made("b");
  title.textContent = name;
  const head = made("div", { class: "queue-head" }, title, made("span", { class: "spacer" }));
  if (name === usual) head.append(badge("Default"));
  if (!active) head.append(badge("Off"));
  const words = made("div", { class: "queue-words" });
  const prices = Object.entries(price).map(([unit, dollars]) => `$${dollars} a ${unit.replaceAll("_", " ")}`);
  words.textContent = [sentence(category), provider, version.slice(0, 12), ...prices].join(" · ");
  return made("div", { class: "queue" }, head, words);
}

function badge(words) {
  const element = made("span", { class: "badge" });
  element.textContent = words;
  return element;
}
