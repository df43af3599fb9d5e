"use strict";

const MOST_LISTED = 100, MOST_KEPT = 300, BAND_S = 300;
const at = (id) => document.getElementById(id);
const make = (tag, name, text) => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
};

let labels = [], saves = false, sources = [];
let story = {};          // what each source decided, by its name
let chosen = 0;          // which source is shown
let settled = false;     // whether that stays: a person chose it, or it was live when the page opened
let shownFrame = -1;     // the number of the picture on the page
let clock = 0;           // the camera's time less ours, seconds
let told = false;        // whether the story is longer than what is drawn of it
let linked = false;      // whether the camera answers at all

// The token has become a cookie: it need not stay in the address, the history, or on a screenshot.
if (location.search.includes("token=")) history.replaceState(null, "", location.pathname);

const dark = matchMedia("(prefers-color-scheme: dark)");
// Neighbours in the list of labels get colours far apart: steps of the golden angle.
// All are equally bright, so that words can be read on each of them.
const colour = (index) => index < 0 ? (dark.matches ? "#7b8794" : "#77828f")
  : `oklch(${dark.matches ? "0.76 0.13" : "0.54 0.15"} ${(258 + index * 137.508) % 360})`;
const percent = (score) => `${(100 * score).toFixed(score >= 0.0005 && score < 0.0995 ? 1 : 0)} %`;
// "unknown 66 %" would read as 66 % sure of it: the score is the best class's.
const score = (answer) => answer.index < 0 ? "" : percent(answer.score);
const best = (answer) => parts(answer.best && `best: ${answer.best[0]} (${percent(answer.best[1])})`,
  answer.novelty && `novelty ${answer.novelty.toFixed(1)}`);
const seconds = (s) => s < 1 ? "<1 s" : s < 60 ? `${Math.floor(s)} s` : s < 3600 ? `${Math.floor(s / 60)} min` : `${Math.floor(s / 3600)} h`;
const hour = (s) => new Date(1000 * s).toLocaleTimeString([], { hour12: false });
const now = () => Date.now() / 1000 + clock;
const parts = (...texts) => texts.filter(Boolean).join(" · ");
const mine = () => (sources[chosen] && story[sources[chosen].name]) || [];

// --- results and states -------------------------------------------------------------------------

let stream, heard = 0;

function listen() {
  if (stream) stream.close();
  stream = new EventSource("events");
  heard = Date.now();
  stream.addEventListener("hello", (event) => {
    ({ labels, saves } = JSON.parse(event.data));
    story = {};
    told = linked = true;
    at("no-saving").hidden = saves;
  });
  stream.addEventListener("news", (event) => {
    const news = JSON.parse(event.data);
    heard = Date.now();
    clock = news.now_s - Date.now() / 1000;
    sources = news.sources;
    if (chosen >= sources.length) chosen = 0;
    settle();
    for (const source of sources) update(source);
    for (const entry of news.story) {
      const entries = story[entry.source] || (story[entry.source] = []);
      if (entries.push(entry) > MOST_KEPT) entries.shift();
      if (entries === mine()) told = true;
    }
    drawNews(news);
  });
  stream.onerror = () => {
    linked = false;
    drawStage();
  };
}

// Show the current score of the last decision in the list, not its score when the label changed.
function update(source) {
  const last = (story[source.name] || []).findLast((entry) => !entry.state), answer = source.answer;
  if (!last || !answer || last.label !== answer.label || last.index !== answer.index) return;
  for (const key of ["score", "best", "novelty"]) last[key] = answer[key];
}

// The camera says something every second. A line that was cut says nothing at all, not even that it was cut, and
// a refusal (too many pages, another token) ends the stream for good: in both cases it is opened anew.
setInterval(() => {
  if (Date.now() - heard < 5000) return;
  linked = false;
  drawStage();
  listen();
}, 1000);

// A page opens on a source that is live; what has ended is there to be chosen.
function settle() {
  const number = settled ? -1 : sources.findIndex((source) => source.state === "live" || !source.state);
  if (number < 0) return;
  settled = true;
  choose(number);
}

function drawNews(news) {
  const source = sources[chosen];
  drawSources();
  drawStage();
  at("heat").hidden = news.temperature_c === null;
  if (news.temperature_c !== null) at("temperature").textContent = Math.round(news.temperature_c);
  if (!source || !source.answer) {
    clear();
    return;
  }
  const comes = !source.state || source.state === "live", age = source.age_ms;
  at("fps").textContent = comes ? source.fps.toFixed(source.fps < 9.95 ? 1 : 0) : "–";
  at("age").textContent = !comes ? "–" : age < 1000 ? Math.round(age) : (age / 1000).toFixed(1);
  at("age-unit").textContent = age < 1000 ? "ms" : "s";
  at("label").textContent = source.answer.label;
  at("score").textContent = score(source.answer);
  at("best").textContent = best(source.answer);
  at("swatch").style.background = colour(source.answer.index);
  document.title = `${source.answer.label} · edgerec`;
  drawBars(source.categories);
  drawLast();
}

// Nothing of one source may stand under the name of another.
function clear() {
  for (const id of ["fps", "age", "label"]) at(id).textContent = "–";
  at("score").textContent = at("best").textContent = "";
  at("swatch").style.background = "";
  at("bars").replaceChildren(make("li", "quiet", "Nothing yet."));
  document.title = "edgerec";
}

function drawSources() {
  const box = at("sources");
  while (box.children.length > sources.length) box.lastChild.remove();
  sources.forEach((source, number) => {
    let chip = box.children[number];
    if (!chip) {
      chip = make("button", "source");
      chip.append(make("span", "dot"), make("span", "name"), make("span", "is"));
      chip.addEventListener("click", () => {
        settled = true;
        choose(number);
      });
      box.append(chip);
    }
    const [dot, name, is] = chip.children;
    dot.className = `dot ${source.state || ""}`;
    name.textContent = source.name;
    is.textContent = source.state || "";
    chip.title = source.reason || "";
    chip.setAttribute("aria-pressed", number === chosen);
  });
}

function choose(number) {
  if (number === chosen) return;
  chosen = number;
  shownFrame = -1;
  if (waiting) waiting.abort();
  at("toast").classList.remove("up");
  const canvas = at("picture");
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  delete canvas.dataset.frame;
  clear();
  drawSources();
  drawStage();
  drawStory();
}

function drawStage() {
  const source = sources[chosen];
  const state = !linked ? "no answer from the camera" : source ? source.state : "connecting";
  const still = state !== "live" && state !== undefined;
  at("stage").classList.toggle("still", still);
  at("veil-state").textContent = state || "";
  const long = source && source.since_s ? seconds(now() - source.since_s) : "";
  const since = long && (state === "ended" ? `${long} ago` : `for ${long}`);
  if (still) at("veil-reason").textContent = linked ? parts(source && source.reason, since) : "trying again …";
  at("snapshot").disabled = !(linked && shownFrame >= 0);
  at("wrong").disabled = at("snapshot").disabled || !saves;
}

function drawBars(categories) {
  const list = at("bars");
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
    fill.style.background = colour(index);
  });
}

// --- time line ----------------------------------------------------------------------------------

function drawStory() {
  const entries = mine(), rows = [];
  for (let i = entries.length - 1; i >= 0 && rows.length < MOST_LISTED; i--) {
    const entry = entries[i], row = make("li", entry.state ? "state" : "");
    const mark = make("span", entry.state ? `dot ${entry.state}` : "swatch");
    if (!entry.state) mark.style.background = colour(entry.index);
    const long = entry.state || i + 1 === entries.length ? "" : seconds(entries[i + 1].at_s - entry.at_s);
    row.append(make("time", "", hour(entry.at_s)), mark, make("span", "what", entry.state || entry.label),
      make("span", "score", entry.state ? "" : score(entry)), make("span", "long", long));
    const more = entry.state ? entry.reason : best(entry);
    if (more) row.append(make("span", "more", more));
    rows.push(row);
  }
  at("story").replaceChildren(...(rows.length ? rows : [make("li", "quiet none", "Nothing yet.")]));
  at("story-head").hidden = !rows.length;
  at("story-source").textContent = sources.length > 1 ? ` · ${sources[chosen].name}` : "";
  drawLast();
  drawBand();
}

// Update the duration and the score of the current decision.
function drawLast() {
  const last = mine().at(-1), row = at("story").querySelector("li:first-child");
  if (!last || last.state || !linked || told || !row || !row.querySelector(".long")) return;
  row.querySelector(".long").textContent = seconds(now() - last.at_s);
  row.querySelector(".score").textContent = score(last);
  const more = row.querySelector(".more");
  if (more) more.textContent = best(last);
}

function drawBand() {
  const canvas = at("band"), box = canvas.getBoundingClientRect(), dense = devicePixelRatio || 1, entries = mine();
  canvas.width = Math.max(1, Math.round(box.width * dense));
  canvas.height = Math.round(box.height * dense);
  const draw = canvas.getContext("2d"), end = now();
  entries.forEach((entry, i) => {
    if (entry.state) return;
    const from = 1 - (end - entry.at_s) / BAND_S;
    const to = i + 1 < entries.length ? 1 - (end - entries[i + 1].at_s) / BAND_S : 1;
    if (to <= 0) return;
    const x = Math.max(0, from) * canvas.width, width = Math.max(dense, to * canvas.width - x);
    draw.fillStyle = colour(entry.index);
    draw.fillRect(x, 0, width, canvas.height);
    draw.font = `600 ${12.5 * dense}px system-ui, sans-serif`;
    if (draw.measureText(entry.label).width + 16 * dense > width) return;
    draw.fillStyle = dark.matches ? "#0b0f14" : "#fff";
    draw.textBaseline = "middle";
    draw.fillText(entry.label, x + 8 * dense, canvas.height / 2 + dense / 2);
  });
}

// --- picture ------------------------------------------------------------------------------------

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

let waiting;             // ends the request for a picture, as of a source that is no longer shown

// One request at a time: a slow line gets fewer pictures, but always the newest.
async function watch() {
  for (;;) {
    const number = chosen;
    if (document.hidden || !linked || !sources.length) {
      await pause(150);
      continue;
    }
    const request = waiting = new AbortController();
    const late = setTimeout(() => request.abort(), 20000);
    try {
      const reply = await fetch(`picture/${number}?after=${shownFrame}`, { signal: request.signal });
      if (reply.status === 200) {
        const image = await createImageBitmap(await reply.blob());
        if (number === chosen) show(image, Number(reply.headers.get("X-Frame")));
        image.close();
      } else if (reply.status !== 204) await pause(1000);
    } catch {
      if (number === chosen) await pause(500);
    } finally {
      clearTimeout(late);
    }
  }
}

function show(image, frame) {
  const canvas = at("picture");
  if (canvas.width !== image.width || canvas.height !== image.height) {
    canvas.width = image.width;
    canvas.height = image.height;
  }
  canvas.getContext("2d").drawImage(image, 0, 0);
  canvas.dataset.frame = frame;
  const first = shownFrame < 0;
  shownFrame = frame;
  if (first) drawStage();
}

// --- saving -------------------------------------------------------------------------------------

async function post(path, fields) {
  const reply = await fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(fields),
  });
  if (!reply.ok) throw new Error((await reply.text()).trim());
  return reply.json();
}

const hold = () => post("hold", { source: chosen, frame: shownFrame });

// The camera names the file; where it goes is the browser's matter.
function download(held) {
  const link = make("a");
  link.href = `held/${encodeURIComponent(held.hold)}/file`;
  link.download = held.file;
  link.click();
  say(`Downloading ${held.file}`);
  if (saves && held.index >= 0) offer(`Save as “${held.label}” too`, () => trying(() => save(held, held.index)));
}

async function save(held, index) {
  const saved = await post("save", { hold: held.hold, index });
  say(`Saved as “${saved.label}” · ${saved.saved} so far`);
}

async function trying(work) {
  try {
    await work();
  } catch (error) {
    say(error.message || "the camera does not answer", true);
  }
}

function ask(held) {
  const dialog = at("chooser"), search = at("search");
  at("held").src = `held/${encodeURIComponent(held.hold)}`;
  search.hidden = labels.length <= 12;
  search.value = "";
  const list = () => {
    const wanted = search.value.trim().toLowerCase();
    const found = labels.map((label, index) => [label, index]).filter(([label]) => label.toLowerCase().includes(wanted));
    at("labels").replaceChildren(...found.slice(0, 200).map(([label, index]) => {
      const button = make("button", index === held.index ? "said" : "", label);
      button.type = "button";
      button.addEventListener("click", () => {
        dialog.close();
        trying(() => save(held, index));
      });
      return button;
    }));
  };
  search.oninput = list;
  search.onkeydown = (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    if (search.value && at("labels").firstChild) at("labels").firstChild.click();
  };
  list();
  dialog.showModal();
  if (!search.hidden) search.focus();
}

let quiet;
function say(text, bad = false) {
  const toast = at("toast");
  toast.replaceChildren(make("span", "", text));
  toast.className = bad ? "up bad" : "up";
  hush(bad ? 6000 : 3000);
}

function hush(ms) {
  clearTimeout(quiet);
  quiet = setTimeout(() => at("toast").classList.remove("up"), ms);
}

// What may be done with what was just said.
function offer(text, work) {
  const button = make("button", "", text);
  button.addEventListener("click", work);
  at("toast").append(button);
  hush(8000);
}

at("snapshot").addEventListener("click", () => trying(async () => download(await hold())));
at("wrong").addEventListener("click", () => trying(async () => ask(await hold())));
dark.addEventListener("change", drawStory);
addEventListener("resize", drawBand);
setInterval(() => { drawLast(); drawBand(); }, 1000);
// Answers that flicker must not keep a phone busy with its list.
setInterval(() => { if (told) { told = false; drawStory(); } }, 200);

listen();
watch();
