// The list of models: which there are, which are chosen, and where each adapter is.

import { byId, element, setText } from "./dom.js";
import { ownTask, problemOf, sharedTask } from "./tasks.js";
import { get } from "./server.js";

const MAX_CHOSEN = 6;
const NUM_CHOSEN_AT_FIRST = 3;
const MANY = 8;

/** The models of the server, and the prompt panel that says what they are asked. */
export class Models {
  #models = [];
  #chosen = new Set();

  constructor() {
    byId("model-filter").addEventListener("input", () => this.#filter());
    byId("prompt-kind").addEventListener("change", () => this.#showPrompt());
  }

  /** Ask the server which models there are; the chosen ones stay chosen. Raises as `get` does. */
  async load() {
    const { data } = await get("v1/models");
    if (JSON.stringify(data) === JSON.stringify(this.#models)) return; // keep the focus where it is
    const first = this.#models.length === 0;
    this.#models = data;
    const names = data.map((model) => model.id);
    this.#chosen = first
      ? new Set(names.slice(0, NUM_CHOSEN_AT_FIRST))
      : new Set(names.filter((name) => this.#chosen.has(name)));
    this.#draw();
    this.#showPrompt();
  }

  get base() {
    return this.#models[0]?.id;
  }

  /** The chosen models in the order of the list. */
  get chosen() {
    return this.#models.filter((model) => this.#chosen.has(model.id));
  }

  /** What a model is asked. */
  taskOf(model) {
    const shared = this.#shared();
    return byId("prompt-kind").value === "same" ? shared : ownTask(model, shared);
  }

  /** Why the chosen models cannot be asked, or nothing. */
  get problem() {
    if (!this.#chosen.size) return "Choose a model.";
    return this.chosen.map((model) => problemOf(this.taskOf(model))).find(Boolean);
  }

  /** Mark where each adapter is: in a slot, in RAM, or on disk only. */
  showTiers(scrape) {
    const tiers = new Map();
    for (const { labels, value } of scrape.of("finlora_adapter_resident")) {
      if (value && tiers.get(labels.adapter) !== "slot") tiers.set(labels.adapter, labels.tier);
    }
    // The metrics name a bounded number of adapters; of the others nothing is known.
    const absent = tiers.has("_other") ? "" : "disk";
    for (const item of byId("models").children) {
      const badge = item.querySelector(".tier");
      if (badge) setText(badge, tiers.get(item.dataset.model) ?? absent);
    }
  }

  #shared() {
    if (byId("prompt-kind").value === "own") return sharedTask([...this.chosen, ...this.#models]);
    const labels = byId("labels").value.split(",").map((label) => label.trim());
    return { template: byId("template").value, labels: labels.filter(Boolean) };
  }

  #draw() {
    byId("models").replaceChildren(...this.#models.map((model) => this.#item(model)));
    byId("model-filter").hidden = this.#models.length <= MANY;
    this.#filter();
    this.#limit();
  }

  #item(model) {
    const box = element("input", {
      type: "checkbox",
      checked: this.#chosen.has(model.id),
      onchange: () => this.#choose(model.id, box.checked),
    });
    const kind = model.parent === null ? "base, no adapter" : (model.task ?? "adapter");
    const item = element(
      "li",
      { "data-model": model.id },
      element(
        "label",
        {},
        box,
        element("span", { class: "model-name" }, model.id),
        element("span", { class: "quiet" }, kind),
        model.parent === null ? undefined : element("span", { class: "tier" }, "disk"),
      ),
    );
    return item;
  }

  #choose(name, chosen) {
    if (chosen) this.#chosen.add(name);
    else this.#chosen.delete(name);
    this.#limit();
    this.#showPrompt();
  }

  #limit() {
    const full = this.#chosen.size >= MAX_CHOSEN;
    for (const box of byId("models").querySelectorAll("input")) box.disabled = full && !box.checked;
    setText(byId("models-count"), full ? `${MAX_CHOSEN} at most` : "");
  }

  #filter() {
    const wanted = byId("model-filter").value.toLowerCase();
    for (const item of byId("models").children) {
      const box = item.querySelector("input");
      item.hidden = !item.dataset.model.toLowerCase().includes(wanted) && !box.checked;
    }
  }

  #showPrompt() {
    const own = byId("prompt-kind").value === "own";
    for (const id of ["template", "labels"]) byId(id).readOnly = own;
    const shared = this.#shared();
    if (own) {
      byId("template").value = shared.template;
      byId("labels").value = shared.labels.join(", ");
    }
    setText(
      byId("prompt-note"),
      own
        ? "Every adapter is asked as it was trained. Models without labels or a template of their own, as the base, are asked so:"
        : "All models are asked so, however they were trained:",
    );
  }
}
