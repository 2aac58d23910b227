// Prometheus' text format, as /metrics gives it, and what can be read from two scrapes.

const SAMPLE = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { "\\n": "\n", '\\"': '"', "\\\\": "\\" };

/** One scrape: samples by name, each with labels and a value. */
export class Scrape {
  constructor(text) {
    this.time = performance.now() / 1000;
    this.samples = new Map();
    for (const line of text.split("\n")) {
      const match = SAMPLE.exec(line);
      if (match === null) continue;
      const [, name, labels = "", value] = match;
      const found = this.samples.get(name) ?? [];
      found.push({ labels: parseLabels(labels), value: Number(value.replace("Inf", "Infinity")) });
      this.samples.set(name, found);
    }
  }

  /** The samples of a series, of those labels that are given. */
  of(name, labels = {}) {
    const wanted = Object.entries(labels);
    const found = this.samples.get(name) ?? [];
    return found.filter((sample) => wanted.every(([key, value]) => sample.labels[key] === value));
  }

  /** The sum of a series; NaN when there is none. */
  sum(name, labels) {
    const found = this.of(name, labels);
    return found.length ? found.reduce((total, sample) => total + sample.value, 0) : NaN;
  }

  /** Value by label. */
  by(name, label) {
    return new Map(this.of(name).map((sample) => [sample.labels[label], sample.value]));
  }
}

/** The increase of a counter per second between two scrapes. */
export function rate(before, now, name) {
  return (now.sum(name) - (before.sum(name) || 0)) / (now.time - before.time);
}

/** A quantile of what a histogram took in between two scrapes; NaN when that is nothing. */
export function quantile(before, now, name, share) {
  const earlier = before ? before.by(`${name}_bucket`, "le") : new Map();
  const buckets = [...now.by(`${name}_bucket`, "le")]
    .map(([edge, count]) => [edge === "+Inf" ? Infinity : Number(edge), count - (earlier.get(edge) ?? 0)])
    .sort((a, b) => a[0] - b[0]);
  const total = buckets.at(-1)?.[1] ?? 0;
  if (!total) return NaN;
  const rank = share * total;
  let [low, below] = [0, 0];
  for (const [edge, count] of buckets) {
    if (count >= rank) {
      if (edge === Infinity) return low;
      return low + ((edge - low) * (rank - below)) / (count - below);
    }
    [low, below] = [edge, count];
  }
  return low;
}

function parseLabels(text) {
  const labels = {};
  for (const [, name, value] of text.matchAll(LABEL)) {
    labels[name] = value.replace(/\\[n"\\]/g, (escape) => ESCAPES[escape]);
  }
  return labels;
}
