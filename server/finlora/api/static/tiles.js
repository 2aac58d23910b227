// The tiles: what /metrics says now, and how it changed over the last minutes.

import { byId, element, setText } from "./dom.js";
import { bytes, duration, figure } from "./numbers.js";
import { quantile, rate, Scrape } from "./series.js";
import { text } from "./server.js";

const NUM_SCRAPES = 61;
const WINDOW_SECONDS = 60;
const PARTS = [
  ["base", "base", (part) => part.startsWith("base_")],
  ["kv", "keys, values", (part) => part === "kv_cache"],
  ["slots", "adapter slots", (part) => part === "adapter_slots"],
  ["ram", "adapters in RAM", (part) => part === "adapter_cache"],
];

/** Scrapes and draws; `update` raises what the call raises. */
export class Tiles {
  #scrapes = [];

  async update() {
    const scrape = new Scrape(await text("metrics", "text/plain"));
    const last = this.#scrapes.at(-1);
    if (last && scrape.sum(REQUESTS) < last.sum(REQUESTS)) this.#scrapes = []; // it was restarted
    this.#scrapes.push(scrape);
    if (this.#scrapes.length > NUM_SCRAPES) this.#scrapes.shift();
    this.#drawRate(scrape);
    this.#drawFirstToken(scrape);
    drawMemory(scrape);
    drawAdapters(scrape);
    return scrape;
  }

  #drawRate(now) {
    const rates = pairs(this.#scrapes).map(([before, after]) => rate(before, after, REQUESTS) || 0);
    setText(byId("tile-rate"), figure(rates.at(-1) ?? NaN));
    const [running, waiting] = ["running", "waiting"].map((s) => now.sum(`finlora_requests_${s}`) || 0);
    const before = this.#scrapes.at(-2);
    const tokens = before ? rate(before, now, "finlora_step_tokens_sum") : 0;
    setText(
      byId("tile-rate-note"),
      `${running} running, ${waiting} waiting, ${figure(tokens)} tokens/s`,
    );
    spark("tile-rate-spark", rates);
  }

  #drawFirstToken(now) {
    const start = this.#scrapes.find((scrape) => now.time - scrape.time <= WINDOW_SECONDS);
    const recent = quantile(start, now, FIRST_TOKEN, 0.5);
    const [middle, high] = [0.5, 0.95].map((share) =>
      quantile(Number.isNaN(recent) ? undefined : start, now, FIRST_TOKEN, share),
    );
    setText(byId("tile-ttft"), duration(middle));
    const span = Number.isNaN(recent) ? "since the start" : "last minute";
    const note = Number.isNaN(middle) ? "no request yet" : `median, ${span}; p95 ${duration(high)}`;
    setText(byId("tile-ttft-note"), note);
    const points = pairs(this.#scrapes).map(([a, b]) => quantile(a, b, FIRST_TOKEN, 0.5));
    spark("tile-ttft-spark", points);
  }
}

const REQUESTS = "finlora_requests_total";
const FIRST_TOKEN = "finlora_time_to_first_token_seconds";

const pairs = (items) => items.slice(1).map((item, index) => [items[index], item]);

function spark(id, values) {
  const finite = values.filter(Number.isFinite);
  const top = Math.max(...finite, 0) || 1;
  const step = 120 / (NUM_SCRAPES - 2);
  const start = 120 - step * (values.length - 1);
  const points = values
    .map((value, index) => [start + index * step, 26 - (24 * value) / top])
    .filter(([, y]) => Number.isFinite(y))
    .map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`);
  byId(id).firstElementChild.setAttribute("points", points.join(" "));
}

function drawMemory(now) {
  const held = now.by("finlora_memory_bytes", "part");
  const sizes = PARTS.map(([kind, name, belongs]) => {
    const parts = [...held].filter(([part]) => belongs(part));
    return [kind, name, parts.reduce((total, [, size]) => total + size, 0)];
  });
  const total = sizes.reduce((sum, [, , size]) => sum + size, 0);
  const resident = now.sum("process_resident_memory_bytes");
  const limit = now.sum("finlora_memory_limit_bytes");
  setText(byId("tile-memory"), total ? bytes(total) : "–");
  byId("tile-memory-stack").replaceChildren(...sizes.filter(([, , size]) => size).map(([kind, , size]) => segment(kind, size, total)));
  byId("tile-memory-legend").replaceChildren(
    ...sizes.map(([kind, name, size]) =>
      element("li", { class: kind }, `${name} `, element("b", {}, bytes(size))),
    ),
    element("li", { class: "quiet" }, `process ${bytes(resident)} of ${bytes(limit)}`),
  );
}

function segment(kind, size, total) {
  const node = element("span", { class: kind });
  node.style.flexGrow = String(total ? size / total : 0);
  return node;
}

function drawAdapters(now) {
  const held = now.by("finlora_adapters_resident", "tier");
  const slots = now.by("finlora_limit", "setting").get("max_loras") ?? 0;
  const used = held.get("slot") ?? 0;
  setText(byId("tile-adapters"), `${used} / ${slots}`);
  setText(byId("tile-adapters-note"), `${held.get("ram") ?? 0} in RAM`);
  const seats = Array.from({ length: Math.min(slots, 64) }, (_, index) =>
    element("span", { class: index < used ? "taken" : "" }),
  );
  byId("tile-adapters-seats").replaceChildren(...seats);
}
