// Headlines side by side: one row a text, one column a model, probabilities and streaming answers.

import { byId, element, setText } from "./dom.js";
import { bars, chip, colourOf } from "./labels.js";
import { counted, duration, probability } from "./numbers.js";
import { answers, classify } from "./tasks.js";

const MAX_TEXTS = 64;
const EXAMPLES = [
  "Operating profit rose 12 percent and the company raised its outlook.",
  "The company will cut 300 jobs and close its plant in Ohio after a weak quarter.",
  "The annual general meeting will be held on 14 April in Helsinki.",
  "Shares fell 8 percent after the chief financial officer resigned.",
  "The bank renewed its credit agreement on unchanged terms.",
];

/** The panel for pasted headlines. `models` tells what to ask, `onError` hears of every failure. */
export class Compare {
  #abort;

  constructor(models, onError) {
    this.models = models;
    this.onError = onError;
    byId("run").addEventListener("click", () => this.run());
    byId("stop").addEventListener("click", () => this.stop());
    byId("examples").addEventListener("click", () => {
      byId("texts").value = EXAMPLES.join("\n");
      byId("texts").focus();
    });
    byId("only-different").addEventListener("change", (event) => {
      byId("results").classList.toggle("only-different", event.target.checked);
    });
  }

  stop() {
    this.#abort?.abort();
  }

  /** Ask every chosen model about every text; a second call ends the first. */
  async run() {
    const texts = byId("texts").value.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);
    const problem = this.models.problem ?? problemWith(texts);
    if (problem) {
      report(problem, true);
      if (!texts.length) byId("texts").focus();
      return;
    }
    this.stop();
    const abort = (this.#abort = new AbortController());
    const columns = this.models.chosen.map((model) => new Column(model.id, this.models.taskOf(model)));
    const table = new Table(texts, columns);
    byId("results").replaceChildren(table.node);
    byId("stop").disabled = false;
    report(`Asking ${counted(columns.length, "model")} about ${counted(texts.length, "headline")}…`);
    const started = performance.now();
    await Promise.all(columns.map((column) => this.#fill(table, column, texts, abort.signal)));
    if (this.#abort !== abort) return;
    byId("stop").disabled = true;
    this.#sum(table, columns, texts, (performance.now() - started) / 1000, abort.signal.aborted);
  }

  async #fill(table, column, texts, signal) {
    const maxTokens = Math.min(Math.max(Number(byId("max-tokens").value) || 0, 0), 256);
    const work = [this.#classify(table, column, texts, signal)];
    if (maxTokens) work.push(this.#stream(table, column, texts, maxTokens, signal));
    const failed = (await Promise.allSettled(work)).find((end) => end.status === "rejected");
    table.finish(column);
    if (failed && failed.reason.name !== "AbortError") {
      column.fail(failed.reason);
      this.onError(failed.reason);
    }
  }

  async #classify(table, column, texts, signal) {
    const started = performance.now();
    const results = await classify(column.model, column.task, texts, signal);
    column.show(results, (performance.now() - started) / 1000);
    results.forEach((result, index) => table.show(column, index, result));
  }

  async #stream(table, column, texts, maxTokens, signal) {
    for await (const part of answers(column.model, column.task, texts, maxTokens, signal)) {
      table.write(column, part);
    }
  }

  #sum(table, columns, texts, seconds, aborted) {
    const failed = columns.filter((column) => column.failure);
    if (failed.length) {
      report(`${failed.map((column) => column.model).join(", ")}: ${failed[0].failure}`, true);
    } else if (aborted) {
      report("Stopped.");
    } else {
      const differing = columns.length > 1 ? `; models differ on ${table.numDifferent}` : "";
      const work = `${counted(texts.length, "headline")} by ${counted(columns.length, "model")}`;
      report(`${work} in ${duration(seconds)}${differing}.`);
    }
  }
}

function problemWith(texts) {
  if (!texts.length) return "Type or paste a headline first.";
  if (texts.length > MAX_TEXTS) return `At most ${MAX_TEXTS} headlines at once: put more into a CSV file.`;
  return undefined;
}

function report(message, wrong = false) {
  byId("compare-status").classList.toggle("wrong", wrong);
  setText(byId("compare-status"), message);
}

class Column {
  failure;

  constructor(model, task) {
    this.model = model;
    this.task = task;
    this.note = element("span", { class: "note" });
    this.node = element("th", { scope: "col" }, element("span", { class: "model-name" }, model), this.note);
  }

  show(results, seconds) {
    const counts = this.task.labels.map((label) => [label, results.filter((r) => r.label === label).length]);
    const chips = counts
      .filter(([, count]) => count)
      .map(([label, count]) =>
        element("span", { class: `count ${colourOf(label, this.task.labels)}`, title: label }, `${count} ${label} `),
      );
    this.note.replaceChildren(...chips, duration(seconds));
  }

  fail(error) {
    this.failure = error.message;
    this.note.replaceChildren(element("span", { class: "wrong" }, error.message));
  }
}

class Table {
  numDifferent = 0;
  #rows;

  constructor(texts, columns) {
    this.#rows = texts.map((text) => new Row(text, columns));
    this.node = element(
      "table",
      { class: "compare" },
      element("caption", { class: "off-screen" }, "Label probabilities by headline and model"),
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Headline"), ...columns.map((c) => c.node))),
      element("tbody", {}, ...this.#rows.map((row) => row.node)),
    );
    this.node.style.setProperty("--columns", String(columns.length));
  }

  show(column, index, result) {
    if (this.#rows[index].show(column, result)) this.numDifferent += 1;
  }

  write(column, part) {
    this.#rows[part.index].cells.get(column).write(part);
  }

  finish(column) {
    for (const row of this.#rows) row.cells.get(column).finish();
  }
}

class Row {
  #labels = new Set();

  constructor(text, columns) {
    this.cells = new Map(columns.map((column) => [column, new Cell(column)]));
    this.node = element(
      "tr",
      {},
      element("th", { scope: "row" }, element("span", { class: "text", title: text }, text), element("span", { class: "differ" }, "models differ")),
      ...[...this.cells.values()].map((cell) => cell.node),
    );
  }

  /** True when this result is the first that differs from the others. */
  show(column, result) {
    const before = this.#labels.size;
    this.#labels.add(result.label);
    this.cells.get(column).show(result);
    const differs = before === 1 && this.#labels.size === 2;
    if (differs) this.node.classList.add("different");
    return differs;
  }
}

class Cell {
  #column;

  constructor(column) {
    this.#column = column;
    this.verdict = element("p", { class: "verdict" });
    this.probabilities = element("div", {});
    this.says = element("p", { class: "says" });
    // On a phone the columns stand below each other, each with its model's name.
    this.node = element(
      "td",
      { class: "waiting", "data-model": column.model },
      this.verdict,
      this.probabilities,
      this.says,
    );
  }

  show(result) {
    const { labels } = this.#column.task;
    this.verdict.replaceChildren(
      chip(result.label, labels),
      element("span", { class: "value" }, probability(result.probability)),
    );
    this.probabilities.replaceChildren(bars(result, labels));
  }

  write(part) {
    this.says.append(part.text);
    this.says.classList.toggle("done", part.done);
  }

  finish() {
    this.node.classList.remove("waiting");
    this.says.classList.add("done");
  }
}
