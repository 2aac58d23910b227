// A CSV file in, the same file with labels out. Nothing is uploaded but the texts themselves.

import { format, parse } from "./csv.js";
import { byId, element, setText } from "./dom.js";
import { chip, colourOf } from "./labels.js";
import { counted, duration, figure, probability } from "./numbers.js";
import { Labelling } from "./labelling.js";

const MAX_BYTES = 64e6;
const NUM_PREVIEWED = 12;
const TEXT_NAMES = /^(text|headline|title|sentence|news|tweet|content|body)s?$/i;
const NOT_A_ROW = "the line has another number of fields than the heading";

/** The panel for CSV files. */
export class FilePanel {
  #file;
  #labelling;
  #url;

  constructor(models, onError) {
    this.models = models;
    this.onError = onError;
    byId("file-input").addEventListener("change", (event) => this.#take(event.target.files[0]));
    byId("file-run").addEventListener("click", () => this.run());
    byId("file-stop").addEventListener("click", () => this.stop());
    byId("text-column").addEventListener("change", () => this.#reset());
    this.#acceptDrops();
  }

  stop() {
    this.#labelling?.stop();
  }

  /** Label every row that has no label yet. */
  async run() {
    if (!this.#file || this.#labelling?.running) return;
    const { problem } = this.models;
    if (problem) return report(problem, true);
    const models = this.models.chosen.map((model) => ({ id: model.id, task: this.models.taskOf(model) }));
    if (!this.#labelling?.isFor(models)) this.#labelling = new Labelling(this.#texts(), models);
    const labelling = this.#labelling;
    setText(byId("file-run").firstChild, "Label all rows ");
    report(`Labelling ${counted(labelling.rows.length, "row")}…`);
    byId("file-run").disabled = true;
    byId("file-stop").disabled = false;
    byId("download").hidden = true;
    const started = performance.now();
    const before = labelling.numDone;
    await labelling.run(() => this.#progress(labelling, before, started));
    byId("file-run").disabled = false;
    byId("file-stop").disabled = true;
    setText(byId("file-rate"), "");
    if (this.#labelling === labelling) this.#finish(labelling, (performance.now() - started) / 1000);
    if (labelling.failure) this.onError(labelling.failure);
  }

  #acceptDrops() {
    const drop = byId("drop");
    // Without these two the browser would open the file in place of the page.
    for (const kind of ["dragover", "drop"]) {
      document.addEventListener(kind, (event) => event.preventDefault());
    }
    document.addEventListener("dragover", () => drop.classList.add("over"));
    document.addEventListener("dragleave", () => drop.classList.remove("over"));
    document.addEventListener("drop", (event) => {
      drop.classList.remove("over");
      if (event.dataTransfer.files.length) {
        byId("tab-file").click();
        this.#take(event.dataTransfer.files[0]);
      }
    });
  }

  async #take(file) {
    if (!file) return;
    this.stop();
    this.#labelling = undefined;
    try {
      if (file.size > MAX_BYTES) throw new Error("it is larger than 64 MB: use finlora predict");
      const [columns, ...rows] = parse(await file.text());
      if (!rows.length) throw new Error("it has no rows below the heading");
      this.#file = { name: file.name, columns, rows };
    } catch (error) {
      this.#file = undefined;
      byId("file-setup").hidden = true;
      return report(`${file.name} cannot be used: ${error.message}.`, true);
    }
    this.#showFile();
  }

  #showFile() {
    const { name, columns, rows } = this.#file;
    setText(byId("file-name"), `${name}: ${counted(rows.length, "row")}, ${counted(columns.length, "column")}`);
    byId("text-column").replaceChildren(...columns.map((column, index) => new Option(column, index)));
    byId("text-column").value = String(textColumn(columns, rows));
    byId("file-setup").hidden = false;
    this.#reset();
  }

  #reset() {
    this.stop();
    this.#labelling = undefined;
    byId("file-progress").value = 0;
    byId("download").hidden = true;
    byId("file-summary").replaceChildren();
    this.#preview();
    report("");
  }

  /** The text of every row, or what is wrong with it. */
  #texts() {
    const { columns, rows } = this.#file;
    const chosen = Number(byId("text-column").value);
    return rows.map((row) => {
      if (row.length !== columns.length) return { error: NOT_A_ROW };
      return row[chosen].trim() ? { text: row[chosen] } : { error: "there is no text" };
    });
  }

  #progress(labelling, before, started) {
    const rate = (labelling.numDone - before) / ((performance.now() - started) / 1000);
    byId("file-progress").value = labelling.numDone / labelling.numAll;
    const left = (labelling.numAll - labelling.numDone) / rate;
    const rows = `${Math.floor(labelling.numDone / labelling.models.length).toLocaleString("en")} of ${counted(labelling.rows.length, "row")}`;
    setText(byId("file-rate"), `${rows}, ${figure(rate / labelling.models.length)} rows/s, ${duration(left)} to go`);
    this.#preview();
    byId("file-summary").replaceChildren(...summary(labelling));
  }

  #finish(labelling, seconds) {
    this.#preview();
    byId("file-summary").replaceChildren(...summary(labelling));
    byId("file-progress").value = labelling.numDone / labelling.numAll;
    this.#offer(labelling);
    if (labelling.numDone < labelling.numAll) {
      setText(byId("file-run").firstChild, "Go on ");
      const why = labelling.failure ? `Interrupted: ${labelling.failure.message}` : "Stopped";
      return report(`${why}. What is done can be downloaded, the rest be labelled later.`, Boolean(labelling.failure));
    }
    const errors = labelling.numErrors ? `; ${counted(labelling.numErrors, "error")}, see the file` : "";
    report(`${counted(labelling.rows.length, "row")} in ${duration(seconds)}${errors}.`);
  }

  #offer(labelling) {
    URL.revokeObjectURL(this.#url);
    const { name, columns, rows } = this.#file;
    const table = labelling.table(columns, rows);
    this.#url = URL.createObjectURL(new Blob([format(table)], { type: "text/csv;charset=utf-8" }));
    const link = byId("download");
    link.href = this.#url;
    link.download = `${name.replace(/\.[^.]*$/, "")}.labels.csv`;
    link.hidden = false;
  }

  #preview() {
    const { columns, rows } = this.#file;
    const chosen = Number(byId("text-column").value);
    const models = this.#labelling?.models ?? [];
    const body = rows.slice(0, NUM_PREVIEWED).map((row, index) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, element("span", { class: "text" }, row[chosen] ?? "")),
        ...models.map((model) => resultCell(model, this.#labelling.rows[index])),
      ),
    );
    const more = rows.length - body.length;
    byId("file-preview").replaceChildren(
      element(
        "table",
        { class: "preview" },
        element("caption", { class: "note" }, more > 0 ? `The first ${NUM_PREVIEWED} of ${counted(rows.length, "row")}` : ""),
        element(
          "thead",
          {},
          element("tr", {}, ...[columns[chosen], ...models.map((m) => m.id)].map((name) => element("th", { scope: "col" }, name))),
        ),
        element("tbody", {}, ...body),
      ),
    );
  }
}

function textColumn(columns, rows) {
  const named = columns.findIndex((column) => TEXT_NAMES.test(column.trim()));
  if (named >= 0) return named;
  const sample = rows.slice(0, 50);
  const lengths = columns.map((_, i) => sample.reduce((total, row) => total + (row[i]?.length ?? 0), 0));
  return lengths.indexOf(Math.max(...lengths));
}

function resultCell(model, row) {
  const result = row.results.get(model.id);
  const error = row.error ?? result?.error;
  if (error) return element("td", { class: "wrong" }, error);
  if (!result) return element("td", { class: "quiet" }, "…");
  return element(
    "td",
    {},
    chip(result.label, model.task.labels),
    element("span", { class: "value" }, probability(result.probability)),
  );
}

/** How the labels are distributed, for each model. */
function summary(labelling) {
  return labelling.models.map((model) => {
    const counts = [...labelling.counts.get(model.id)];
    const stack = element("div", { class: "stack", "aria-hidden": "true" });
    for (const [label, count] of counts.filter(([, number]) => number)) {
      const part = element("span", { class: colourOf(label, model.task.labels) });
      part.style.flexGrow = String(count);
      stack.append(part);
    }
    const items = counts.map(([label, count]) =>
      element("li", { class: colourOf(label, model.task.labels) }, `${label} `, element("b", {}, count.toLocaleString("en"))),
    );
    return element("div", {}, element("h3", {}, model.id), stack, element("ul", { class: "legend" }, ...items));
  });
}

function report(message, wrong = false) {
  byId("file-status").classList.toggle("wrong", wrong);
  setText(byId("file-status"), message);
}
