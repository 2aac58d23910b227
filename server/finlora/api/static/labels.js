// How labels look: a colour by meaning where the name tells it, and a bar for each probability.

import { element } from "./dom.js";
import { probability } from "./numbers.js";

const MEANINGS = [
  ["negative", /^(very |strongly )?(negative|bearish|bad|down|sell|no|false|decrease)\b/i],
  ["neutral", /^(neutral|hold|mixed|flat|none|unchanged)\b/i],
  ["positive", /^(very |strongly )?(positive|bullish|good|up|buy|yes|true|increase)\b/i],
];
const NUM_COLOURS = 5;
const MAX_BARS = 6;

/** The class that colours a label. */
export function colourOf(label, labels) {
  const meaning = MEANINGS.find(([, pattern]) => pattern.test(label));
  return meaning ? meaning[0] : `colour-${labels.indexOf(label) % NUM_COLOURS}`;
}

/** A label with its mark. */
export function chip(label, labels) {
  return element("span", { class: `chip ${colourOf(label, labels)}` }, label);
}

/** A row for each label: name, bar, figure. Of many labels, the likeliest. */
export function bars(result, labels) {
  const shown = [...labels];
  if (labels.length > MAX_BARS) {
    shown.sort((a, b) => result.probabilities[b] - result.probabilities[a]).splice(MAX_BARS);
  }
  return element("ul", { class: "bars" }, ...shown.map((label) => bar(label, labels, result)));
}

function bar(label, labels, result) {
  const value = result.probabilities[label];
  const fill = element("span", { class: "fill" });
  fill.style.width = `${100 * value}%`;
  return element(
    "li",
    { class: `${colourOf(label, labels)}${label === result.label ? " best" : ""}` },
    element("span", { class: "name", title: label }, label),
    element("span", { class: "track", "aria-hidden": "true" }, fill),
    element("span", { class: "value" }, probability(value)),
  );
}
