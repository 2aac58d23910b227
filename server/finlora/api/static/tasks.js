// What a model is asked: its labels, its prompt, and the probabilities it gives them.

import { events, post } from "./server.js";

const INPUT = "{input}";
const FALLBACK = {
  labels: ["negative", "neutral", "positive"],
  template:
    "Instruction: What is the sentiment of this news? Please choose an answer from " +
    "{negative/neutral/positive}.\nInput: {input}\nAnswer: ",
};

/** The task of an adapter that has both labels and a template; else of the first that has. */
export function sharedTask(models) {
  const complete = models.find((model) => model.labels && model.prompt_template);
  return complete ? ownTask(complete, FALLBACK) : FALLBACK;
}

/** A model's labels and template; `other`'s where it has none of its own. */
export function ownTask(model, other) {
  return {
    labels: model.labels ?? other.labels,
    template: model.prompt_template ?? other.template,
  };
}

/** What is wrong with a task, or nothing. */
export function problemOf(task) {
  if (task.template.split(INPUT).length !== 2) return "The template must contain {input} exactly once.";
  if (new Set(task.labels).size !== task.labels.length) return "A label is there twice.";
  if (task.labels.length < 2) return "There must be two labels or more.";
  return undefined;
}

/** For each text its `label`, its `probability` and all `probabilities`. Raises as `post` does. */
export async function classify(model, task, texts, signal) {
  const body = { model, input: texts, ...task, return_probabilities: true };
  const { data } = await post("v1/classify", body, signal);
  return data;
}

/** What a model writes after each text, part by part: {index, text, done}. */
export async function* answers(model, task, texts, maxTokens, signal) {
  const body = {
    model,
    prompt: texts.map((text) => task.template.split(INPUT).join(text)),
    max_tokens: maxTokens,
    temperature: 0,
    stream: true,
  };
  for await (const { choices } of events("v1/completions", body, signal)) {
    for (const choice of choices) {
      yield { index: choice.index, text: choice.text, done: choice.finish_reason !== null };
    }
  }
}
