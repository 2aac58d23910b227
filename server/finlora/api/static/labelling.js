// Many texts by several models: a few requests at a time, each error with its own row.

import { GoneError, patiently, ServerError } from "./server.js";
import { classify } from "./tasks.js";

const BATCH = 64;
const NUM_REQUESTS = 3;
const NUM_DIGITS = 7; // float32 carries no more

/**
 * Labels rows of {text} or {error}; can be stopped and run again for what is left. `counts` has how
 * often each model gave each label.
 */
export class Labelling {
  running = false;
  failure;
  numDone = 0;
  numErrors = 0;
  #abort;

  constructor(texts, models) {
    this.models = models;
    this.rows = texts.map((row) => ({ ...row, results: new Map() }));
    this.numAll = texts.length * models.length;
    const unusable = this.rows.filter((row) => row.error).length;
    this.numDone = unusable * models.length;
    this.numErrors = unusable;
    this.counts = new Map(models.map(({ id, task }) => [id, new Map(task.labels.map((l) => [l, 0]))]));
  }

  /** Whether it is these models that it asks, in this way. */
  isFor(models) {
    return JSON.stringify(models) === JSON.stringify(this.models);
  }

  stop() {
    this.#abort?.abort();
  }

  /** Work until all is done, it is stopped, or the server cannot go on: then `failure` says why. */
  async run(onProgress) {
    this.running = true;
    this.failure = undefined;
    this.#abort = new AbortController();
    const batches = this.#batches();
    const work = async () => {
      for (const { model, rows } of batches) {
        await this.#label(model, rows, this.#abort.signal);
        onProgress();
      }
    };
    try {
      await Promise.all(Array.from({ length: NUM_REQUESTS }, work));
    } catch (error) {
      this.stop();
      if (error.name !== "AbortError") this.failure = error;
    }
    this.running = false;
  }

  /**
   * The file with its results, in the columns of `finlora predict`; where there are several models, or
   * a column has such a name already, with the model's name in front.
   */
  table(columns, records) {
    const plain = this.models.length === 1 && !added(this.models[0]).some((name) => columns.includes(name));
    const heads = this.models.map((model) => added(model).map((name) => (plain ? name : `${model.id}.${name}`)));
    const body = records.map((record, index) => [
      ...columns.map((_, column) => record[column] ?? ""),
      ...this.models.flatMap((model) => this.#fields(model, this.rows[index])),
    ]);
    return [[...columns, ...heads.flat()], ...body];
  }

  #fields({ id, task }, row) {
    const result = row.results.get(id);
    const values = [result?.probability, ...task.labels.map((label) => result?.probabilities?.[label])];
    const digits = values.map((value) => value?.toFixed(NUM_DIGITS) ?? "");
    return [result?.label ?? "", ...digits, row.error ?? result?.error ?? ""];
  }

  /** What is left to do, shared by all who work. */
  *#batches() {
    for (const model of this.models) {
      const left = this.rows.filter((row) => !row.error && !row.results.has(model.id));
      for (let start = 0; start < left.length; start += BATCH) {
        yield { model, rows: left.slice(start, start + BATCH) };
      }
    }
  }

  async #label(model, rows, signal) {
    try {
      const texts = rows.map((row) => row.text);
      const ask = () => classify(model.id, model.task, texts, signal);
      const results = await patiently(ask, isGone, signal); // it may come back
      results.forEach((result, index) => this.#note(rows[index], model, result));
    } catch (error) {
      if (!(error instanceof ServerError) || error.status !== 400) throw error;
      if (rows.length === 1) return this.#note(rows[0], model, { error: error.message });
      // One row spoils the request: the halves tell which.
      const middle = rows.length >> 1;
      await this.#label(model, rows.slice(0, middle), signal);
      await this.#label(model, rows.slice(middle), signal);
    }
  }

  #note(row, model, result) {
    row.results.set(model.id, result);
    this.numDone += 1;
    if (result.error) {
      this.numErrors += 1;
    } else {
      const counts = this.counts.get(model.id);
      counts.set(result.label, counts.get(result.label) + 1);
    }
  }
}

const added = ({ task }) => ["label", "probability", ...task.labels.map((l) => `probability_${l}`), "error"];

const isGone = (error) => error instanceof GoneError;
