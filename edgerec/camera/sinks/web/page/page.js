"use strict";

const MAX_LISTED = 100, MAX_ENTRIES = 300, BAND_S = 300;
const byId = (id) => document.getElementById(id);
const make = (tag, className, text) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
};

let labels = [], canSave = false, sources = [];
let entries = {};            // decisions and state changes of each source, by its name
let selected = 0;            // index of the source on the page
let selectionFixed = false;  // whether the user, or the page when it was opened, has selected the source
let shownFrame = -1;         // index of the frame on the page
let clockOffset = 0;         // time of the camera minus time of the browser, in seconds
let listOutdated = false;    // whether there are entries that are not in the list yet
let connected = false;       // whether the page receives events from the camera

// Remove the token from the address and the history, because the browser now has a cookie.
if (location.search.includes("token=")) history.replaceState(null, "", location.pathname);

const dark = matchMedia("(prefers-color-scheme: dark)");
// The hues of consecutive labels differ by the golden angle, so that they are easy to distinguish. All colors have the
// same lightness, so that text is readable on each of them.
const color = (index) => index < 0 ? (dark.matches ? "#7b8794" : "#77828f")
  : `oklch(${dark.matches ? "0.76 0.13" : "0.54 0.15"} ${(258 + index * 137.508) % 360})`;
const percent = (score) => `${(100 * score).toFixed(score >= 0.0005 && score < 0.0995 ? 1 : 0)} %`;
// The score of "unknown" is the score of the best class, so "unknown 66 %" would be misleading.
const scoreText = (prediction) => prediction.index < 0 ? "" : percent(prediction.score);
const bestText = (prediction) => join(prediction.best && `best: ${prediction.best[0]} (${percent(prediction.best[1])})`,
  prediction.novelty && `novelty ${prediction.novelty.toFixed(1)}`);
const duration = (s) => s < 1 ? "<1 s" : s < 60 ? `${Math.floor(s)} s` : s < 3600 ? `${Math.floor(s / 60)} min` : `${Math.floor(s / 3600)} h`;
const timeText = (s) => new Date(1000 * s).toLocaleTimeString([], { hour12: false });
const now = () => Date.now() / 1000 + clockOffset;
const join = (...texts) => texts.filter(Boolean).join(" · ");
const selectedEntries = () => (sources[selected] && entries[sources[selected].name]) || [];

// --- results and states -------------------------------------------------------------------------

let stream, lastEvent = 0;

function listen() {
  if (stream) stream.close();
  stream = new EventSource("events");
  lastEvent = Date.now();
  stream.addEventListener("hello", (event) => {
    ({ labels, saves: canSave } = JSON.parse(event.data));
    entries = {};
    listOutdated = connected = true;
    byId("no-saving").hidden = canSave;
  });
  stream.addEventListener("news", (event) => {
    const news = JSON.parse(event.data);
    lastEvent = Date.now();
    clockOffset = news.now_s - Date.now() / 1000;
    sources = news.sources;
    if (selected >= sources.length) selected = 0;
    selectLiveSource();
    for (const source of sources) updateScore(source);
    for (const entry of news.story) {
      const list = entries[entry.source] || (entries[entry.source] = []);
      if (list.push(entry) > MAX_ENTRIES) list.shift();
      if (list === selectedEntries()) listOutdated = true;
    }
    drawNews(news);
  });
  stream.onerror = () => {
    connected = false;
    drawStage();
  };
}

// Show the current score of the last decision in the list instead of the score at its start.
function updateScore(source) {
  const last = (entries[source.name] || []).findLast((entry) => !entry.state), prediction = source.prediction;
  if (!last || !prediction || last.label !== prediction.label || last.index !== prediction.index) return;
  for (const key of ["score", "best", "novelty"]) last[key] = prediction[key];
}

// The camera sends an event at least once per second. The browser does not detect a lost connection, and does not
// reconnect after an error response (too many pages, or a new token). In both cases, open a new stream.
setInterval(() => {
  if (Date.now() - lastEvent < 5000) return;
  connected = false;
  drawStage();
  listen();
}, 1000);

// When the page is opened, select the first live source.
function selectLiveSource() {
  const number = selectionFixed ? -1 : sources.findIndex((source) => source.state === "live" || !source.state);
  if (number < 0) return;
  selectionFixed = true;
  select(number);
}

function drawNews(news) {
  const source = sources[selected];
  drawSources();
  drawStage();
  drawBoxes();
  byId("heat").hidden = news.temperature_c === null;
  if (news.temperature_c !== null) byId("temperature").textContent = Math.round(news.temperature_c);
  if (!source || !source.prediction) {
    clear();
    return;
  }
  const isLive = !source.state || source.state === "live", age = source.age_ms;
  byId("fps").textContent = isLive ? source.fps.toFixed(source.fps < 9.95 ? 1 : 0) : "–";
  byId("age").textContent = !isLive ? "–" : age < 1000 ? Math.round(age) : (age / 1000).toFixed(1);
  byId("age-unit").textContent = age < 1000 ? "ms" : "s";
  byId("label").textContent = source.prediction.label;
  byId("score").textContent = scoreText(source.prediction);
  byId("best").textContent = bestText(source.prediction);
  byId("swatch").style.background = color(source.prediction.index);
  document.title = `${source.prediction.label} · edgerec`;
  drawBars(source.categories);
  drawLast();
}

// Remove all values of the previous source.
function clear() {
  for (const id of ["fps", "age", "label"]) byId(id).textContent = "–";
  byId("score").textContent = byId("best").textContent = "";
  byId("swatch").style.background = "";
  byId("bars").replaceChildren(make("li", "quiet", "No data yet."));
  document.title = "edgerec";
}

function drawSources() {
  const box = byId("sources");
  while (box.children.length > sources.length) box.lastChild.remove();
  sources.forEach((source, number) => {
    let chip = box.children[number];
    if (!chip) {
      chip = make("button", "source");
      chip.append(make("span", "dot"), make("span", "name"), make("span", "is"));
      chip.addEventListener("click", () => {
        selectionFixed = true;
        select(number);
      });
      box.append(chip);
    }
    const [dot, name, state] = chip.children;
    dot.className = `dot ${source.state || ""}`;
    name.textContent = source.name;
    state.textContent = source.state || "";
    chip.title = source.reason || "";
    chip.setAttribute("aria-pressed", number === selected);
  });
}

function select(number) {
  if (number === selected) return;
  const sameImage = sources[number].region && sources[selected] && sources[number].source === sources[selected].source;
  selected = number;
  shownFrame = -1;
  if (imageRequest) imageRequest.abort();
  byId("toast").classList.remove("up");
  const canvas = byId("image");
  if (!sameImage) canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  delete canvas.dataset.frame;
  clear();
  drawSources();
  drawStage();
  drawBoxes();
  drawList();
}

// Draw the boxes and labels of all regions of the selected source over its image. A click selects a region.
function drawBoxes() {
  const box = byId("boxes"), canvas = byId("image"), source = sources[selected];
  const regions = source && source.region ? sources.filter((other) => other.region && other.source === source.source) : [];
  if (!regions.length && !box.children.length) return;
  const { width, height } = box.getBoundingClientRect();
  // The size of the text does not depend on the size of the image.
  const pixel = 1 / Math.min(width / canvas.width, height / canvas.height);
  box.setAttribute("viewBox", `0 0 ${canvas.width} ${canvas.height}`);
  while (box.children.length > regions.length) box.lastChild.remove();
  regions.forEach((region, index) => {
    let group = box.children[index];
    if (!group) {
      group = document.createElementNS(box.namespaceURI, "g");
      group.append(...["rect", "text"].map((tag) => document.createElementNS(box.namespaceURI, tag)));
      group.addEventListener("click", () => {
        selectionFixed = true;
        select(sources.findIndex((other) => other.name === group.dataset.name));
      });
      box.append(group);
    }
    const [left, top, right, bottom] = region.box, [rect, text] = group.children;
    group.dataset.name = region.name;
    group.setAttribute("class", region === source ? "selected" : "");
    rect.setAttribute("x", left * canvas.width);
    rect.setAttribute("y", top * canvas.height);
    rect.setAttribute("width", (right - left) * canvas.width);
    rect.setAttribute("height", (bottom - top) * canvas.height);
    text.setAttribute("x", left * canvas.width + 8 * pixel);
    text.setAttribute("y", top * canvas.height + 20 * pixel);
    text.setAttribute("font-size", 15 * pixel);
    text.setAttribute("stroke-width", 4 * pixel);
    text.textContent = [`${region.region}:`, region.prediction.label, scoreText(region.prediction)].filter(Boolean).join(" ");
  });
}

function drawStage() {
  const source = sources[selected];
  const state = !connected ? "no connection to the camera" : source ? source.state : "connecting";
  const isStill = state !== "live" && state !== undefined;
  byId("stage").classList.toggle("still", isStill);
  byId("veil-state").textContent = state || "";
  const elapsed = source && source.since_s ? duration(now() - source.since_s) : "";
  const since = elapsed && (state === "ended" ? `${elapsed} ago` : `for ${elapsed}`);
  if (isStill) byId("veil-reason").textContent = connected ? join(source && source.reason, since) : "trying to reconnect …";
  byId("snapshot").disabled = !(connected && shownFrame >= 0);
  byId("wrong").disabled = byId("snapshot").disabled || !canSave;
}

function drawBars(categories) {
  const list = byId("bars");
  while (list.children.length > categories.length) list.lastChild.remove();
  categories.forEach(([label, index, score], number) => {
    let row = list.children[number];
    if (!row || row.children.length < 3) {
      if (row) row.remove();
      row = make("li");
      const track = make("div", "track");
      track.append(make("div", "fill"));
      row.append(make("span", "name"), make("span", "value"), track);
      list.append(row);
    }
    row.children[0].textContent = label;
    row.children[0].title = label;
    row.children[1].textContent = percent(score);
    const fill = row.children[2].firstChild;
    fill.style.width = `${100 * Math.min(1, Math.max(0, score))}%`;
    fill.style.background = color(index);
  });
}

// --- list of decisions --------------------------------------------------------------------------

function drawList() {
  const list = selectedEntries(), rows = [];
  for (let i = list.length - 1; i >= 0 && rows.length < MAX_LISTED; i--) {
    const entry = list[i], row = make("li", entry.state ? "state" : "");
    const mark = make("span", entry.state ? `dot ${entry.state}` : "swatch");
    if (!entry.state) mark.style.background = color(entry.index);
    const elapsed = entry.state || i + 1 === list.length ? "" : duration(list[i + 1].at_s - entry.at_s);
    row.append(make("time", "", timeText(entry.at_s)), mark, make("span", "what", entry.state || entry.label),
      make("span", "score", entry.state ? "" : scoreText(entry)), make("span", "long", elapsed));
    const details = entry.state ? entry.reason : bestText(entry);
    if (details) row.append(make("span", "more", details));
    rows.push(row);
  }
  byId("story").replaceChildren(...(rows.length ? rows : [make("li", "quiet none", "No data yet.")]));
  byId("story-head").hidden = !rows.length;
  byId("story-source").textContent = sources.length > 1 ? ` · ${sources[selected].name}` : "";
  drawLast();
  drawBand();
}

// Update the duration and the score of the current decision.
function drawLast() {
  const last = selectedEntries().at(-1), row = byId("story").querySelector("li:first-child");
  if (!last || last.state || !connected || listOutdated || !row || !row.querySelector(".long")) return;
  row.querySelector(".long").textContent = duration(now() - last.at_s);
  row.querySelector(".score").textContent = scoreText(last);
  const details = row.querySelector(".more");
  if (details) details.textContent = bestText(last);
}

function drawBand() {
  const canvas = byId("band"), box = canvas.getBoundingClientRect(), scale = devicePixelRatio || 1;
  const list = selectedEntries();
  canvas.width = Math.max(1, Math.round(box.width * scale));
  canvas.height = Math.round(box.height * scale);
  const context = canvas.getContext("2d"), end = now();
  list.forEach((entry, i) => {
    if (entry.state) return;
    const from = 1 - (end - entry.at_s) / BAND_S;
    const to = i + 1 < list.length ? 1 - (end - list[i + 1].at_s) / BAND_S : 1;
    if (to <= 0) return;
    const x = Math.max(0, from) * canvas.width, width = Math.max(scale, to * canvas.width - x);
    context.fillStyle = color(entry.index);
    context.fillRect(x, 0, width, canvas.height);
    context.font = `600 ${12.5 * scale}px system-ui, sans-serif`;
    if (context.measureText(entry.label).width + 16 * scale > width) return;
    context.fillStyle = dark.matches ? "#0b0f14" : "#fff";
    context.textBaseline = "middle";
    context.fillText(entry.label, x + 8 * scale, canvas.height / 2 + scale / 2);
  });
}

// --- image --------------------------------------------------------------------------------------

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

let imageRequest;  // AbortController of the current request for an image

// Send one request at a time, so that a slow connection receives fewer images, but always the newest.
async function pollImages() {
  for (;;) {
    const number = selected;
    if (document.hidden || !connected || !sources.length) {
      await pause(150);
      continue;
    }
    const request = imageRequest = new AbortController();
    const timeout = setTimeout(() => request.abort(), 20000);
    try {
      const response = await fetch(`image/${number}?after=${shownFrame}`, { signal: request.signal });
      if (response.status === 200) {
        const image = await createImageBitmap(await response.blob());
        if (number === selected) show(image, Number(response.headers.get("X-Frame")));
        image.close();
      } else if (response.status !== 204) await pause(1000);
    } catch {
      if (number === selected) await pause(500);
    } finally {
      clearTimeout(timeout);
    }
  }
}

function show(image, frame) {
  const canvas = byId("image");
  if (canvas.width !== image.width || canvas.height !== image.height) {
    canvas.width = image.width;
    canvas.height = image.height;
    drawBoxes();
  }
  canvas.getContext("2d").drawImage(image, 0, 0);
  canvas.dataset.frame = frame;
  const isFirst = shownFrame < 0;
  shownFrame = frame;
  if (isFirst) drawStage();
}

// --- saving -------------------------------------------------------------------------------------

async function post(path, fields) {
  const response = await fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(fields),
  });
  if (!response.ok) throw new Error((await response.text()).trim());
  return response.json();
}

const hold = () => post("hold", { source: selected, frame: shownFrame });

// Download the image under the file name that the camera has chosen.
function download(held) {
  const link = make("a");
  link.href = `held/${encodeURIComponent(held.hold)}/file`;
  link.download = held.file;
  link.click();
  showMessage(`Downloading ${held.file}`);
  if (canSave && held.index >= 0) {
    addButton(`Also save as “${held.label}”`, () => showErrors(() => save(held, held.index)));
  }
}

async function save(held, index) {
  const saved = await post("save", { hold: held.hold, index });
  showMessage(`Saved as “${saved.label}” · ${saved.saved} so far`);
}

async function showErrors(action) {
  try {
    await action();
  } catch (error) {
    showMessage(error.message || "The camera does not respond.", true);
  }
}

function askForLabel(held) {
  const dialog = byId("chooser"), search = byId("search");
  byId("held").src = `held/${encodeURIComponent(held.hold)}`;
  search.hidden = labels.length <= 12;
  search.value = "";
  const listLabels = () => {
    const query = search.value.trim().toLowerCase();
    const matches = labels.map((label, index) => [label, index]).filter(([label]) => label.toLowerCase().includes(query));
    byId("labels").replaceChildren(...matches.slice(0, 200).map(([label, index]) => {
      const button = make("button", index === held.index ? "predicted" : "", label);
      button.type = "button";
      button.addEventListener("click", () => {
        dialog.close();
        showErrors(() => save(held, index));
      });
      return button;
    }));
  };
  search.oninput = listLabels;
  search.onkeydown = (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    if (search.value && byId("labels").firstChild) byId("labels").firstChild.click();
  };
  listLabels();
  dialog.showModal();
  if (!search.hidden) search.focus();
}

let hideTimer;
function showMessage(text, isError = false) {
  const toast = byId("toast");
  toast.replaceChildren(make("span", "", text));
  toast.className = isError ? "up bad" : "up";
  hideMessageAfter(isError ? 6000 : 3000);
}

function hideMessageAfter(ms) {
  clearTimeout(hideTimer);
  hideTimer = setTimeout(() => byId("toast").classList.remove("up"), ms);
}

// Add a button to the current message.
function addButton(text, action) {
  const button = make("button", "", text);
  button.addEventListener("click", action);
  byId("toast").append(button);
  hideMessageAfter(8000);
}

byId("snapshot").addEventListener("click", () => showErrors(async () => download(await hold())));
byId("wrong").addEventListener("click", () => showErrors(async () => askForLabel(await hold())));
dark.addEventListener("change", drawList);
addEventListener("resize", () => { drawBand(); drawBoxes(); });
setInterval(() => { drawLast(); drawBand(); }, 1000);
// Draw the list at most five times per second, because this is slow on a phone if the decision changes often.
setInterval(() => { if (listOutdated) { listOutdated = false; drawList(); } }, 200);

listen();
pollImages();
