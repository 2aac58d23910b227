// The page: connects to the server, keeps the tiles alive, and gives every key its meaning.

import { Compare } from "./compare.js";
import { byId, setText } from "./dom.js";
import { FilePanel } from "./file.js";
import { Models } from "./models.js";
import { GoneError, hasKey, setKey } from "./server.js";
import { Tiles } from "./tiles.js";

const TICK_MS = 2000;
const TABS = ["compare", "file"];

const models = new Models();
const tiles = new Tiles();
const panels = { compare: new Compare(models, failed), file: new FilePanel(models, failed) };
let current = "compare";
let connected = false;
let locked = false; // until another key is given

async function tick() {
  if (!document.hidden) await look();
  setTimeout(tick, TICK_MS);
}

async function look() {
  try {
    const scrape = await tiles.update();
    if (!connected && !locked) await connect();
    models.showTiers(scrape);
  } catch (error) {
    failed(error);
  }
}

async function connect() {
  await models.load();
  connected = true;
  show("ok", `${models.base} is served`);
}

/** Say at the top what is wrong with the server; what a panel was doing it says itself. */
function failed(error) {
  if (error instanceof GoneError) {
    connected = false;
    show("gone", "the server cannot be reached; trying again");
  } else if (error.status === 401) {
    connected = false;
    locked = true;
    show("key", hasKey() ? "the key is not the server's" : "the server wants an API key");
    openKey();
  } else if (error.code === "engine_not_ready") {
    connected = false;
    show("wait", error.message);
  }
}

function show(state, message) {
  byId("server").dataset.state = state;
  setText(byId("server-text"), message);
}

function openKey() {
  if (!byId("key-form").hidden) return;
  showKey(true);
  byId("key").focus();
}

function showKey(open) {
  byId("key-form").hidden = !open;
  byId("key-button").hidden = open;
}

function choose(tab) {
  current = tab;
  for (const name of TABS) {
    const chosen = name === tab;
    byId(name).hidden = !chosen;
    byId(`tab-${name}`).setAttribute("aria-selected", String(chosen));
    byId(`tab-${name}`).tabIndex = chosen ? 0 : -1;
  }
}

function typing(target) {
  return target.matches("textarea, select, input:not([type=checkbox]):not([type=file])");
}

const SHORTCUTS = {
  "/": () => byId("models").querySelector("input")?.focus(),
  h: () => {
    choose("compare");
    byId("texts").focus();
  },
  "?": () => byId("help").showModal(),
};

function onKey(event) {
  if (byId("help").open) return;
  const command = event.ctrlKey || event.metaKey;
  if (command && event.key === "Enter") panels[current].run();
  else if (event.key === "Escape") panels[current].stop();
  else if (event.altKey && TABS[Number(event.code.replace("Digit", "")) - 1]) {
    const tab = TABS[Number(event.code.replace("Digit", "")) - 1];
    choose(tab);
    byId(`tab-${tab}`).focus();
  } else if (!command && !event.altKey && !typing(event.target) && SHORTCUTS[event.key]) {
    SHORTCUTS[event.key]();
  } else return;
  event.preventDefault();
}

function onTabKey(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  choose(TABS[(TABS.indexOf(current) + step + TABS.length) % TABS.length]);
  byId(`tab-${current}`).focus();
}

document.addEventListener("keydown", onKey);
document.querySelector("[role=tablist]").addEventListener("keydown", onTabKey);
for (const name of TABS) byId(`tab-${name}`).addEventListener("click", () => choose(name));
byId("help-button").addEventListener("click", () => byId("help").showModal());
byId("key-button").addEventListener("click", openKey);
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value);
  byId("key").value = "";
  showKey(false);
  connected = locked = false;
  look();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) connected = false; // adapters may have come or gone
});
tick();
