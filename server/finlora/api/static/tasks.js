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

/** The likeliest label of each text and the probability of every label. Raises as `post` does. */
export async function classify(model, task, texts, signal) {
  const body = {
    model,
    prompt: texts.map((text) => filled(task, text)),
    temperature: 0,
    logprobs: 0,
    structured_outputs: { choice: task.labels },
  };
  const { choices } = await post("v1/completions", body, signal);
  return choices.map(({ logprobs }) => {
    const entries = Object.entries(logprobs.choice_logprobs).map(([l, v]) => [l, Math.exp(v)]);
    const [label, probability] = entries.reduce((best, entry) => (entry[1] > best[1] ? entry : best));
    return { label, probability, probabilities: Object.fromEntries(entries) };
  });
}

/** What a model writes after each text, part by part: {index, text, done}. */
export async function* answers(model, task, texts, maxTokens, signal) {
  const body = {
    model,
    prompt: texts.map((text) => filled(task, text)),
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

const filled = (task, text) => task.template.split(INPUT).join(text);
