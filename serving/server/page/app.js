// The page: form, progress, image, history.

import { $, announce, askToken, copy, element, showError, showNotice } from "./dom.js";
import { History } from "./history.js";
import { modelsOf } from "./models.js";
import { commandOf, exactJson, readable, recipeOf } from "./recipe.js";
import { RequestError, Server } from "./server.js";
import { Settings, hashOf, randomSeed } from "./settings.js";

const POLL_MS = 200;
const SAID_BEFORE = {
  400: "The server refuses these settings",
  404: "The server does not have this model",
  429: "The server is busy; try again in a moment",
  503: "The server is busy or not ready; try again in a moment",
  504: "The image took too long",
};
const query = new URLSearchParams(location.search);

let server, settings, history;
let running = null; // {controller, announced} while an image is made

async function start() {
  let base;
  try {
    base = new URL(query.get("server") ?? ".", location.href);
    if (!/^https?:$/.test(base.protocol)) throw new TypeError("no address of a web server");
  } catch {
    return showError(`The address ${query.get("server")} in ?server= is none. Write it as http://host:8501.`);
  }
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  server = new Server(base, askToken);
  history = new History($("thumbnails"), base.href, select);
  if (!(await loadModels())) return;
  openLink();
  if (!location.hash && matchMedia("(pointer: fine)").matches) $("prompt").focus();
}

async function loadModels() {
  try {
    const models = await modelsOf(server, query.get("model"), query.get("version"));
    if (models.length === 0) throw new RequestError(0, "The server has no model yet. Reload this page in a moment.");
    settings = new Settings($("form"), models);
    describeModel();
    return true;
  } catch (error) {
    explain(error);
    return false;
  }
}

/** Fills the form from the address, and shows the image if it was made in this session. */
function openLink() {
  if (location.hash.length < 2) return;
  showNotice(settings.fill(location.hash).join(" "));
  $("keep").checked = $("seed").value !== "";
  describeModel();
  const known = history.entries.find((entry) => entry.hash === location.hash);
  if (known) show(known);
}

function describeModel() {
  const { name, version, identity, licence } = settings.model;
  const words = [version ? `${name}, version ${version}` : name, identity.dtype];
  $("model-line").textContent = words.filter(Boolean).join(" · ");
  const { name: licenceName, url, restrictions } = licence;
  const link = element("a", licenceName);
  if (/^https:/.test(url)) link.href = url;
  const parts = licenceName ? ["Licence of the model: ", link, restrictions ? `. ${restrictions}` : ""] : [];
  $("licence").replaceChildren(...parts);
}

async function generate() {
  if (running || (!settings && !(await loadModels()))) return;
  const drawn = !$("keep").checked || $("seed").value.trim() === "";
  const before = $("seed").value;
  if (drawn) $("seed").value = randomSeed();
  const values = settings.read();
  if (values === null) {
    if (drawn) $("seed").value = before;
    return;
  }
  const { model } = settings;
  const hash = hashOf(values);
  window.history.replaceState(null, "", hash);
  showError("");
  showNotice("");
  running = { controller: new AbortController(), announced: 0 };
  setBusy(true);
  const started = performance.now();
  const id = newId();
  const watching = watch(id, running);
  try {
    const answer = await server.predict(values, id, running.controller.signal);
    const seconds = (performance.now() - started) / 1000;
    show(history.add(entryOf(values, model, { ...answer, hash, seconds })));
    announce("The image is ready.");
    $("figure").scrollIntoView({ block: "nearest" });
  } catch (error) {
    await failed(error, values);
  } finally {
    running.controller.abort(); // ends the watching
    running = null;
    setBusy(false);
    await watching;
  }
}

function entryOf(values, model, { png, truncated, truncatedNegative, warning, hash, seconds }) {
  const recipe = recipeOf(values, model);
  const words = values.prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60);
  return {
    png,
    truncated,
    truncatedNegative,
    warning,
    hash,
    json: exactJson(recipe, "  "),
    command: commandOf(recipe),
    facts: readable(recipe, seconds),
    alt: `${values.prompt || "no prompt"}; seed ${values.seed}, index ${values.index}`,
    file: `${words || "picture"}-${values.seed}-${values.index}.png`,
  };
}

async function failed(error, values) {
  if (error.name === "AbortError") {
    showNotice(server.isOurs ? "Cancelled." : "Cancelled here; TensorFlow Serving may still finish the image.");
    return;
  }
  explain(error);
  if (error.status !== 404) return;
  const wanted = { name: values.model, version: values.version };
  const hash = location.hash;
  if (!(await loadModels())) return;
  showNotice(settings.fill(hash).join(" "));
  const { name, version } = settings.model;
  if (name === wanted.name && version !== wanted.version) {
    showError(`Version ${wanted.version} of ${name} is no longer served. Version ${version} is chosen: generate again.`);
    showNotice("");
  }
}

/** Moves the progress bar until the request ends. */
async function watch(id, request) {
  const { signal } = request.controller;
  const ask = server.sameOrigin || server.isOurs;
  while (ask) {
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    if (signal.aborted) return;
    try {
      const progress = await server.progress(id, signal);
      if (signal.aborted) return;
      if (progress !== null) showProgress(progress, request);
      else if (!server.isOurs) return; // TF Serving, which tells no progress
    } catch {
      // the request itself fails if the server is gone
    }
  }
}

function showProgress({ state, done, steps, position }, request) {
  if (state === "queued") {
    $("progress").removeAttribute("value");
    $("progress-text").textContent = position > 0 ? `Waiting, ${position} before this` : "Waiting";
    return;
  }
  if (!steps) return;
  $("progress").max = steps;
  $("progress").value = done;
  $("progress-text").textContent = done < steps ? `Step ${done} of ${steps}` : "Finishing";
  const quarter = Math.floor((4 * done) / steps);
  if (quarter > request.announced && quarter < 4) announce(`${25 * quarter} percent`);
  request.announced = Math.max(quarter, request.announced);
}

function setBusy(busy) {
  const hadFocus = document.activeElement === $("cancel");
  $("generate").setAttribute("aria-disabled", String(busy)); // not `disabled`, which would lose the keyboard's focus
  $("cancel").disabled = !busy;
  $("progress-area").hidden = !busy;
  $("stage").setAttribute("aria-busy", String(busy));
  if (!busy && hadFocus) $("generate").focus();
  if (!busy) return;
  $("progress").removeAttribute("value");
  $("progress-text").textContent = "Working";
  announce("Working on the image.");
}

function show(entry) {
  $("empty").hidden = true;
  $("figure").hidden = $("recipe").hidden = false;
  $("picture").src = $("download").href = entry.url;
  $("picture").alt = entry.alt;
  $("download").download = entry.file;
  $("link").href = entry.hash;
  $("facts").replaceChildren(...entry.facts.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
  $("command").replaceChildren(...entry.command.split(/ (?=--)/).flatMap((part) => [" ", flag(part)]).slice(1));
  $("json").textContent = entry.json;
  history.mark(entry);
  const cut = { prompt: entry.truncated, "negative prompt": entry.truncatedNegative };
  const notices = Object.entries(cut).filter(([, count]) => count > 0).map(([name, count]) => {
    const tokens = count === 1 ? "its last token was" : `its last ${count} tokens were`;
    return `The ${name} is longer than the model reads: ${tokens} cut off.`;
  });
  if (entry.warning) notices.push(entry.warning);
  if (notices.length) showNotice(notices.join(" "));
}

/** Returns a part of a command, without line breaks at its hyphens unless it is long. */
function flag(text) {
  const part = element("span", text);
  if (text.length < 32) part.className = "whole";
  return part;
}

/** Shows an image of the session and its settings. */
function select(entry) {
  window.history.replaceState(null, "", entry.hash);
  showError("");
  openLink();
  show(entry);
  $("figure").scrollIntoView({ block: "nearest" });
}

function explain(error) {
  if (!(error instanceof RequestError)) {
    showError(`This page failed: ${error.message}`);
    throw error;
  }
  const before = SAID_BEFORE[error.status] ?? (error.status >= 500 ? "The server failed" : "");
  showError(before ? `${before}: ${error.message}` : error.message);
}

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // `crypto.randomUUID` is missing where there is no TLS
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function submitOnEnter(event) {
  const inText = event.target instanceof HTMLTextAreaElement;
  const wanted = event.ctrlKey || event.metaKey || (inText && !event.shiftKey);
  if (event.key !== "Enter" || event.isComposing || !wanted) return;
  event.preventDefault();
  $("form").requestSubmit();
}

function rollSeed() {
  $("seed").value = randomSeed();
  $("seed").setCustomValidity("");
  $("keep").checked = true; // else it would be replaced at once
}

$("form").noValidate = true; // `Settings.read` asks for the check, after it made the seed's own
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
$("form").addEventListener("keydown", submitOnEnter);
$("seed").addEventListener("input", () => {
  $("seed").setCustomValidity("");
  $("keep").checked = $("seed").value.trim() !== "";
});
$("dice").addEventListener("click", rollSeed);
$("model").addEventListener("change", () => {
  settings.useModel(settings.model, settings.model.name !== $("model").dataset.name);
  describeModel();
});
$("cancel").addEventListener("click", () => running?.controller.abort());
$("token-cancel").addEventListener("click", () => $("token-dialog").close());
$("clear-history").addEventListener("click", () => {
  history.clear();
  $("figure").hidden = $("recipe").hidden = true;
  $("empty").hidden = false;
  $("prompt").focus();
});
$("copy-link").addEventListener("click", (event) => copy(event.currentTarget, $("link").href));
$("copy-command").addEventListener("click", (event) => copy(event.currentTarget, $("command").textContent));
$("copy-json").addEventListener("click", (event) => copy(event.currentTarget, $("json").textContent));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) running?.controller.abort();
});
addEventListener("hashchange", () => settings && openLink());
start();
