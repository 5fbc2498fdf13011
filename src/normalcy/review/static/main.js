// The page: state, what the controls do, and the way from an image to the next.

import { Cache, decide, getJSON } from "./api.js";
import { element, showAgreement } from "./agreement.js";
import { HEAT } from "./colour.js";
import { KEYS, actionOf } from "./keys.js";
import { List } from "./queue.js";
import { SlideView } from "./slide.js";
import { Threshold, brief, percent, short, wilson } from "./stats.js";
import { Viewer } from "./viewer.js";
import { VolumeView } from "./volume.js";

const $ = (id) => document.getElementById(id);
const remembered = (key, otherwise) => { try { return JSON.parse(localStorage.getItem(`normalcy.${key}`)) ?? otherwise; } catch { return otherwise; } };
const remember = (key, value) => { try { localStorage.setItem(`normalcy.${key}`, JSON.stringify(value)); } catch { /* private window */ } };

const app = {
  facts: null, rows: new Map(), reviewer: "", blind: false, readOnly: false,
  opacity: remembered("opacity", 0.6), heat: true, contours: remembered("contours", true), truth: true, marks: true,
  range: null, pixelThreshold: null,
  nameOf: (image) => app.rows.get(image)?.path ?? "",
  load: (images) => load(images),
  jump(image) { show("review"); go(image); },
  say, readout: (text) => { $("readout").textContent = text; },
  marksChanged: () => drawTools(),
  rangesChanged: () => drawColour(),
  windowChanged: () => drawWindow(),
};
window.normalcyReview = app; // for tests and the console; holds nothing that the page does not show

// app.rows: image -> {path, case, score, p, flagged, label, type, others}, of the images that were shown; the server has all
const decisions = new Map(); // image -> Map(reviewer -> {verdict, type, note, mask, blind, time, score})
const drafts = new Map(); // image -> note that is not saved yet
const undone = []; // decisions of this page, to withdraw: {image, before}
const abouts = new Cache(300);
let last = 0, queue = { number: 0, count: 0, first: -1, unreviewed: -1 }, asking = 0, current = -1, list, threshold = null, viewer = null, viewers, busy = 0, opening = 0, pending = 0, types = [];

// -- what is known of an image

const own = (image) => { const one = decisions.get(image)?.get(app.reviewer); return one?.verdict ? one : null; };
const aboutOf = (image) => abouts.get(image, () => getJSON(`/about/${image}`));
const hidden = () => app.blind || app.facts.blind;

/** 0, 1 or null by the reviewers together: those who are sure must agree. */
function labelOf(image) {
  let found = null;
  for (const one of decisions.get(image)?.values() || []) {
    if (hidden() && one !== decisions.get(image).get(app.reviewer)) continue;
    const label = one.verdict === "normal" ? 0 : one.verdict === "anomalous" ? 1 : null;
    if (label === null) continue;
    if (found !== null && found !== label) return null;
    found = label;
  }
  return found;
}

/** [score, label] of the decided images, for the threshold. */
const reviewed = () => [...decisions].map(([image, of]) => [of.values().next().value?.score ?? null, labelOf(image)]);

function flaggedNow(image) {
  const row = app.rows.get(image);
  if (!row) return false;
  if (!threshold || threshold.value === threshold.start) return row.flagged === 1;
  return row.score !== null && row.score > threshold.value;
}

/** The rows of images that are not known yet. */
async function load(images) {
  const missing = images.filter((image) => !app.rows.has(image));
  if (missing.length) keep(missing, await getJSON(`/api/rows?images=${missing.join(",")}`));
}

function keep(images, columns) {
  images.forEach((image, n) => app.rows.set(image, {
    path: columns.path[n], case: columns.case?.[n], score: columns.score?.[n] ?? null, p: columns.p?.[n] ?? null, flagged: columns.flagged?.[n] ?? -1,
    label: columns.label?.[n] ?? -1, type: columns.type?.[n] || "", others: (columns.others || []).map((other) => other[n]),
  }));
  for (const image of app.rows.keys()) { if (app.rows.size <= 20000) break; if (image !== current) app.rows.delete(image); } // the oldest
}

const FILTERS = { // id: name, whether it shows scores, labels or what others decided; the server knows which images
  all: ["All"], unreviewed: ["Not reviewed by me"], reviewed: ["Reviewed by me"], flagged: ["Flagged", true], quiet: ["Not flagged", true],
  false: ["False alarms", true], missed: ["Missed", true], anomalous: ["Decided anomalous"], normal: ["Decided normal"], unsure: ["Unsure"],
  apart: ["Reviewers differ", true], noted: ["With a note"], known: ["Label: anomalous", true], good: ["Label: normal", true],
};

const ORDERS = {
  score: ["Highest score first", () => app.facts.scores], low: ["Lowest score first", () => app.facts.scores],
  p: ["Smallest p-value first", () => app.facts.p], disagreement: ["Methods disagree most", () => app.facts.results.length > 1],
  informative: ["Informative: narrows the rates", () => app.facts.informative], random: ["Random", () => true], name: ["As in the data", () => true],
};

// -- the queue

/** Ask for a queue, and show it; false where another one was asked for meanwhile. */
async function buildQueue(keep = true) {
  const mine = ++asking, moved = threshold && threshold.value !== threshold.start;
  const asked = new URLSearchParams({ order: $("order").value, filter: $("filter").value, type: $("filter-type").value, search: $("search").value.trim(), reviewer: app.reviewer, blind: app.blind ? "1" : "0", threshold: moved ? threshold.value : "", current });
  const found = await getJSON(`/api/queue?${asked}`);
  if (mine !== asking) return false;
  queue = { ...found, number: found.queue };
  await list.set(queue.number, queue.count);
  const total = app.facts.count;
  $("queue-count").textContent = queue.count === total ? `${count(queue.count, "image")}` : `${queue.count.toLocaleString("en-GB")} of ${count(total, "image")}`;
  if (keep && current >= 0 && queue.at >= 0) list.show(current, queue.at);
  drawEstimates();
  return true;
}

/** Images and rows of a part of the queue; asks for the queue again where the server has forgotten it. */
async function partOf(number, from, size) {
  try {
    const found = await getJSON(`/api/queue/${number}?from=${from}&count=${size}`);
    keep(found.images, found.rows);
    return found.images;
  } catch (fault) {
    if (number === queue.number && /no longer kept/.test(fault.message)) buildQueue();
    throw fault;
  }
}

/** The place of an image in the queue, -1 if it is not there. */
async function placeOf(image) {
  if (image < 0 || !queue.count) return -1;
  return list.placeOf(image) ?? (await getJSON(`/api/queue/${queue.number}/place/${image}`)).at;
}

const count = (n, word) => `${n.toLocaleString("en-GB")} ${word}${n === 1 ? "" : "s"}`;

function fillItem(item, image) {
  const mine = own(image), others = [...(decisions.get(image) || [])].filter(([name, d]) => name !== app.reviewer && d.verdict);
  const name = element("span", { class: "name", title: app.nameOf(image) }, element("bdi", {}, app.nameOf(image)));
  const meta = [];
  const row = app.rows.get(image);
  if (!hidden() && row) meta.push(element("span", { class: flaggedNow(image) ? "flag" : "" }, `${flaggedNow(image) ? "⚑ " : ""}${short(row.score ?? NaN)}`));
  const kind = mine?.type || (mine?.note ? "✎" : "");
  if (kind) meta.push(element("span", { class: "type" }, kind));
  if (!hidden() && app.facts.p && row && !kind) meta.push(element("span", {}, `p ${brief(row.p ?? NaN)}`));
  const sign = { normal: "N", anomalous: "A", unsure: "?" };
  let mark = "";
  if (mine) mark = element("span", { class: `verdict-mark ${mine.verdict}`, title: mine.verdict }, sign[mine.verdict]);
  else if (others.length && !hidden()) mark = element("span", { class: "verdict-mark other", title: others.map(([n, d]) => `${n}: ${d.verdict}`).join(", ") }, sign[others[0][1].verdict]);
  const picture = element("img", { src: `/thumb/${image}`, alt: "", loading: "lazy", width: 56, height: 56 });
  item.replaceChildren(picture, element("span", {}, name, element("span", { class: "meta" }, meta)), mark || element("span"));
  item.setAttribute("aria-label", `${app.nameOf(image)}${mine ? `, ${mine.verdict}` : ", not reviewed"}`);
}

// -- going on

/** The page says that it is busy for as long as `work` runs. */
async function during(work) {
  pending++;
  document.body.setAttribute("aria-busy", "true");
  try { return await work(); } finally { document.body.setAttribute("aria-busy", String(--pending > 0)); }
}

const go = (image) => during(() => openImage(image));

async function openImage(image) {
  if (image === undefined || image < 0) return;
  if (!(await saveMarks())) return;
  const mine = ++opening;
  const [chosen, at] = await Promise.all([viewerOf(image), placeOf(image), load([image])]);
  if (!chosen) { if (mine === opening) { settle(image, at); } return; }
  if (chosen.kind === "volume") use(chosen); // WebGL starts on a canvas that has a size
  try {
    const apply = await chosen.open(image, aboutOf(image), Boolean(decisions.get(image)?.get(app.reviewer)?.mask));
    if (mine !== opening) return;
    use(chosen);
    apply();
    $("empty").hidden = true;
  } catch (fault) {
    if (mine !== opening) return;
    use(chosen);
    $("frame").classList.add("nothing");
    showEmpty(fault.message);
  }
  settle(image, at);
}

function settle(image, at) {
  current = image;
  history.replaceState(null, "", `#${image + 1}`);
  list.show(image, at);
  drawAll();
  document.body.dataset.current = String(image);
  if (viewer?.kind === "image" && at >= 0) for (const next of list.known(at + 1, at + 3)) viewer.prefetch(next, aboutOf(next));
}

async function viewerOf(image) {
  if (app.facts.kind === "slide") {
    if (!app.facts.vendor["openseadragon.js"]) { showEmpty(sentence(app.facts.missing["openseadragon.js"])); return null; }
    return viewers.slide;
  }
  let about;
  try { about = await aboutOf(image); } catch (fault) { showEmpty(fault.message); return null; }
  if (!about.volume) return viewers.image;
  if (!app.facts.vendor["niivue.js"]) { showEmpty(sentence(app.facts.missing["niivue.js"])); return null; }
  return viewers.volume;
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1);

function use(chosen) {
  if (viewer === chosen) return;
  viewer = chosen;
  $("canvas").hidden = chosen.kind !== "image"; $("gl").hidden = chosen.kind !== "volume"; $("slide").hidden = chosen.kind !== "slide";
}

function showEmpty(text) {
  $("empty").replaceChildren(element("p", {}, sentence(text)));
  $("empty").hidden = false;
}

/** Go to the image before or after this one. */
const move = (by) => during(async () => {
  const at = await placeOf(current);
  await openImage(at < 0 ? queue.first : await list.at(at + by));
});

/** The next image that is not reviewed; undefined without one. */
async function nextUnreviewed() {
  const { image } = await getJSON(`/api/queue/${queue.number}/unreviewed?after=${await placeOf(current)}&reviewer=${encodeURIComponent(app.reviewer)}`);
  return image < 0 || image === current ? undefined : image;
}

// -- deciding

/** Write the decision; the next image shows when it is on disk. */
const judge = (verdict, kind = null, goOn = true) => during(() => decideCurrent(verdict, kind, goOn));

async function decideCurrent(verdict, kind, goOn) {
  if (app.readOnly) { say("This review is read-only.", true); return; }
  if (current < 0 || busy) return;
  busy++;
  const image = current, before = own(image);
  const note = $("note").value.trim();
  const type = verdict === "anomalous" ? kind ?? (before?.verdict === "anomalous" ? before.type : "") : "";
  try {
    if (await write(image, { verdict, type, note })) {
      undone.push({ image, before });
      drafts.delete(image);
      if (type) addType(type);
      if (goOn) {
        const next = await nextUnreviewed();
        if (next === undefined) { say("All images of this queue are reviewed."); drawAll(); } else { busy--; await go(next); busy++; }
      } else drawAll();
    }
  } finally { busy--; }
}

async function write(image, words) {
  const marked = image === current && viewer?.markChanged;
  const bytes = marked ? viewer.markBytes() : null;
  try {
    const answer = await decide(image, { ...words, reviewer: app.reviewer, blind: app.blind }, bytes);
    if (marked) viewer.markSaved();
    put(image, app.reviewer, { ...words, mask: answer.mask, blind: app.blind, time: answer.time, score: app.rows.get(image)?.score ?? null });
    changed(image);
    return true;
  } catch (fault) {
    say(`Not saved: ${fault.message}`, true);
    return false;
  }
}

/** Marks that were drawn are never lost: an image that is marked and not decided counts as anomalous. */
async function saveMarks() {
  if (current < 0 || app.readOnly || !viewer?.markChanged) {
    const draft = current >= 0 ? $("note").value.trim() : "";
    if (current >= 0 && draft !== (own(current)?.note || "")) {
      if (own(current)) return write(current, { verdict: own(current).verdict, type: own(current).type, note: draft });
      if (draft) drafts.set(current, draft); else drafts.delete(current);
    }
    return true;
  }
  const mine = own(current), words = mine ? { verdict: mine.verdict, type: mine.type, note: $("note").value.trim() } : { verdict: "anomalous", type: "", note: $("note").value.trim() };
  if (!mine && !viewer.hasMarks()) { viewer.markSaved(); return true; }
  if (!mine) say("Saved as anomalous, since it is marked.");
  undone.push({ image: current, before: mine });
  return write(current, words);
}

async function withdraw() {
  const step = undone.pop();
  if (!step) { say("Nothing to withdraw."); return; }
  const { image, before } = step;
  await go(image);
  await write(image, before ? { verdict: before.verdict, type: before.type, note: before.note } : { verdict: "", type: "", note: "" });
  drawAll();
  say(before ? "The earlier decision is back." : "The decision is withdrawn.");
}

function put(image, reviewer, one) {
  if (!decisions.has(image)) decisions.set(image, new Map());
  decisions.get(image).set(reviewer, one);
}

function changed(image) {
  list.update(image);
  drawProgress();
  threshold?.draw();
  drawStatistics();
  drawEstimates();
}

function addType(type) {
  if (!types.includes(type)) { types.push(type); drawTypes(); }
}

async function poll() {
  try {
    const found = await getJSON(`/api/decisions?after=${last}&reviewer=${encodeURIComponent(app.reviewer)}${app.blind ? "&blind=1" : ""}`);
    last = found.last;
    const news = new Set();
    for (const [, image, reviewer, verdict, type, note, mask, blind, time, score] of found.rows) {
      put(image, reviewer, { verdict, type, note, mask, blind, time, score });
      if (type) addType(type);
      news.add(image);
    }
    if (news.size) {
      for (const image of news) list?.update(image);
      if (list) { drawProgress(); threshold?.draw(); drawStatistics(); drawEstimates(); if (news.has(current)) drawAbout(); }
    }
    document.querySelector(".dot").className = `dot${app.blind || app.facts.blind ? " blind" : ""}`;
  } catch {
    document.querySelector(".dot").className = "dot off";
  }
}

// -- drawing

function drawAll() { drawViews(); drawTools(); drawDecision(); drawAbout(); drawColour(); drawWindow(); drawProgress(); drawStatistics(); if (threshold) { threshold.current = hidden() ? null : app.rows.get(current)?.score; threshold.draw(); } }

function drawProgress() {
  let mine = 0;
  for (const of of decisions.values()) if (of.get(app.reviewer)?.verdict) mine++;
  const total = app.facts.count;
  $("progress-bar").style.width = `${(100 * mine) / total}%`;
  $("progress-text").textContent = `${mine.toLocaleString("en-GB")} of ${total.toLocaleString("en-GB")} reviewed`;
  $("progress").setAttribute("aria-label", $("progress-text").textContent);
}

function drawViews() {
  const bar = $("views");
  bar.replaceChildren();
  if (!viewer) return;
  const button = (text, key, pressed, onclick, title = "") => element("button", { type: "button", "aria-pressed": String(pressed), title: title || (key ? `${text} (${key})` : text), onclick }, text);
  for (const [id, name, key] of viewer.views()) bar.append(button(name, key, viewer.shown() === id, () => { viewer.setView(id); drawViews(); drawColour(); }));
  if (viewer.planes) {
    bar.append(element("span", { class: "label" }, "│"));
    for (const [id, name] of viewer.planes()) bar.append(button(name, "", viewer.plane === id, () => { viewer.setPlane(id); drawViews(); }));
    bar.append(element("button", { type: "button", onclick: () => viewer.goPeak(), title: "Go to the peak of the map" }, "Peak"));
  }
  bar.append(element("span", { class: "gap" }));
  const toggle = (name, key, text, title) => button(text, key, app[name], () => act(name), title);
  if (!hidden() && viewer.hasContours) bar.append(toggle("contours", "C", "Outlines"));
  if (viewer.kind === "image" && viewer.arrays?.truth && !hidden()) bar.append(toggle("truth", "V", "Known mask"));
  bar.append(button("Blink", "B", viewer.blinking || false, () => act("blink"), "Blink input and restored (B)"));
  bar.append(button("Fit", "0", false, () => viewer.reset(), "Whole image (0)"));
}

const ICONS = {
  move: '<path d="M12 3v18M3 12h18M12 3l-3 3M12 3l3 3M12 21l-3-3M12 21l3-3M3 12l3-3M3 12l3 3M21 12l-3-3M21 12l-3 3"/>',
  brush: '<path d="M14 4l6 6-8 8c-2 2-5 1-8 2 1-3 0-6 2-8z M14 4l6 6"/>', polygon: '<path d="M5 19L4 9l8-6 8 7-5 10z"/><circle cx="12" cy="3" r="1.4"/><circle cx="20" cy="10" r="1.4"/><circle cx="4" cy="9" r="1.4"/>',
  box: '<rect x="4" y="6" width="16" height="12" rx="1"/>', fill: '<path d="M10 4l8 8-7 7-8-8z M6 8h8 M20 15c1 2 2 3 2 4a2 2 0 0 1-4 0c0-1 1-2 2-4z"/>',
  erase: '<path d="M8 20l-5-5L14 4l7 7-9 9z M9 9l7 7 M8 20h13"/>', undo: '<path d="M8 5L3 10l5 5 M3 10h11a6 6 0 0 1 0 12h-3"/>', redo: '<path d="M16 5l5 5-5 5 M21 10H10a6 6 0 0 0 0 12h3"/>',
  clear: '<path d="M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13"/>',
};
const NAMES = { move: ["Move", "Q"], brush: ["Brush", "P"], polygon: ["Polygon", "L"], box: ["Box", "X"], fill: ["Fill the region above the pixel threshold", "F"], erase: ["Erase", "E"], undo: ["Undo", "Z"], redo: ["Redo", "Shift Z"], clear: ["Clear all marks", "Delete"] };

function drawTools() {
  const bar = $("tools");
  bar.hidden = !viewer?.tools.length || app.readOnly || !$("empty").hidden;
  if (bar.hidden) return;
  const button = (name, pressed, onclick, disabled = false) => {
    const [title, key] = NAMES[name], made = element("button", { type: "button", "aria-label": title, title: `${title} (${key})`, onclick, disabled });
    if (pressed !== null) made.setAttribute("aria-pressed", String(pressed));
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 24 24"); svg.setAttribute("aria-hidden", "true"); svg.innerHTML = ICONS[name]; // constant text of this file
    made.append(svg);
    return made;
  };
  const tools = viewer.tools.filter((name) => name !== "fill" || !hidden());
  bar.replaceChildren(...tools.map((name) => button(name, viewer.tool === name, () => act(`tool:${name}`))),
    button("erase", viewer.erase, () => act("erase")), element("hr"),
    button("undo", null, () => act("undo"), !viewer.canUndo()), button("redo", null, () => act("redo"), !viewer.canRedo()), button("clear", null, () => act("clear"), !viewer.hasMarks()));
  if (viewer.tool === "brush") bar.append(element("span", { class: "size", title: "Size of the brush ([ and ])" }, `⌀ ${short(Math.round(2 * viewer.radius * 2) / 2)}`));
}

function drawDecision() {
  const mine = own(current);
  for (const button of document.querySelectorAll(".verdict")) {
    button.setAttribute("aria-pressed", String(mine?.verdict === button.dataset.verdict));
    button.disabled = app.readOnly;
  }
  if (document.activeElement !== $("note")) $("note").value = drafts.get(current) ?? mine?.note ?? "";
  $("note").readOnly = $("type").readOnly = app.readOnly;
  drawTypes();
}

function drawTypes() {
  const mine = own(current);
  $("types").replaceChildren(...types.map((type, k) => element("button", { type: "button", "aria-pressed": String(mine?.verdict === "anomalous" && mine.type === type), onclick: () => judge("anomalous", type), disabled: app.readOnly },
    type, k < 9 ? " " : "", k < 9 ? element("kbd", {}, String(k + 1)) : "")));
  $("type-list").replaceChildren(...types.map((type) => element("option", { value: type })));
  const kinds = new Set([...types, ...(hidden() ? [] : app.facts.types)]);
  const before = $("filter-type").value;
  $("filter-type").replaceChildren(element("option", { value: "" }, "Any type"), ...[...kinds].sort().map((kind) => element("option", { value: kind }, kind)));
  $("filter-type").value = kinds.has(before) ? before : "";
  $("filter-type").parentElement.hidden = !kinds.size;
}

function drawAbout() {
  if (current < 0) return;
  const of = app.rows.get(current), box = $("about"), pairs = [];
  const row = (name, value) => { if (value !== null && value !== undefined && value !== "") pairs.push(element("dt", {}, name), element("dd", {}, value)); };
  if (!hidden() && of) {
    row(app.facts.results.length > 1 ? `Score, ${app.facts.methods[0]}` : "Score", `${short(of.score ?? NaN)}${flaggedNow(current) ? " · flagged" : ""}`);
    of.others.forEach((other, k) => row(`Score, ${app.facts.methods[k + 1]}`, short(other ?? NaN)));
    if (app.facts.p) row("p-value", brief(of.p ?? NaN));
    if (of.label >= 0) row("Known label", `${of.label ? "anomalous" : "normal"}${of.type ? `, ${of.type}` : ""}`);
    if (of.case) row("Case", of.case);
    for (const [name, one] of decisions.get(current) || []) if (name !== app.reviewer && one.verdict) row(name, `${one.verdict}${one.type ? `, ${one.type}` : ""}${one.blind ? " (blind)" : ""}`);
  }
  const found = !hidden() ? viewer?.regions?.() : null, list = [];
  if (found?.regions.length) {
    const body = found.regions.slice(0, 12).map((region, n) => element("tr", { title: "Go there", tabindex: "0", onclick: () => viewer.goTo(region), onkeydown: (event) => { if (event.key === "Enter") viewer.goTo(region); } },
      element("td", {}, String(n + 1)), element("td", {}, found.unit ? found.unit(region.area) : Math.round(region.area).toLocaleString("en-GB")), element("td", {}, short(region.peak))));
    list.push(element("table", { class: "others" }, element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Region"), element("th", { scope: "col" }, found.unit ? "Area" : "Pixels"), element("th", { scope: "col" }, "Peak"))), element("tbody", {}, body)));
    if (found.total > 12) list.push(element("p", { class: "soft" }, `and ${found.total - 12} more`));
  }
  box.replaceChildren(element("p", { class: "path" }, app.nameOf(current)), element("dl", {}, pairs), ...list);
}

function drawColour() {
  const range = viewer?.range?.(), bounds = viewer?.bounds, box = $("colour-box"), slide = viewer?.kind === "slide";
  const heat = ["map", "overlay", "difference", "uncertainty"].includes(viewer?.shown()) && !hidden();
  box.hidden = !range || !bounds || !heat;
  $("opacity-box").hidden = hidden() || !(["overlay"].includes(viewer?.shown()));
  $("opacity").value = app.opacity;
  $("ranges").hidden = box.hidden && $("opacity-box").hidden && $("window-box").hidden && !slide;
  if (box.hidden) return;
  const canvas = $("colour"), ratio = devicePixelRatio || 1, w = canvas.clientWidth, h = 34;
  canvas.width = w * ratio; canvas.height = h * ratio;
  const c = canvas.getContext("2d"), at = (value) => 6 + ((value - bounds[0]) / (bounds[1] - bounds[0])) * (w - 12);
  c.scale(ratio, ratio);
  for (let x = 6; x < w - 6; x++) {
    const value = bounds[0] + ((x - 6) / (w - 12)) * (bounds[1] - bounds[0]);
    const level = Math.max(0, Math.min(255, Math.round((255 * (value - range[0])) / Math.max(range[1] - range[0], 1e-12))));
    c.fillStyle = `rgb(${HEAT[3 * level]} ${HEAT[3 * level + 1]} ${HEAT[3 * level + 2]})`;
    c.fillRect(x, 4, 1, 10);
  }
  c.fillStyle = "#a3acb6"; c.font = "11px system-ui, sans-serif";
  c.fillText(short(bounds[0]), 6, 30);
  const end = short(bounds[1]);
  c.fillText(end, w - 6 - c.measureText(end).width, 30);
  const step = (value) => Math.round((1000 * (value - bounds[0])) / (bounds[1] - bounds[0]));
  $("colour-low").value = step(range[0]); $("colour-high").value = step(range[1]);
  const level = app.pixelThreshold, mapped = ["map", "overlay"].includes(viewer.shown()) && viewer.kind === "image";
  $("pixel-threshold").hidden = level === null || !mapped;
  if (!$("pixel-threshold").hidden) {
    $("pixel-threshold").value = step(level);
    const x = Math.max(6, Math.min(w - 6, at(level)));
    c.strokeStyle = "#35d0ba"; c.lineWidth = 2;
    c.beginPath(); c.moveTo(x, 2); c.lineTo(x, 22); c.stroke();
    c.fillStyle = "#35d0ba";
    const text = `pixel threshold ${short(level)}`, wide = c.measureText(text).width;
    c.fillText(text, Math.max(46, Math.min(w - wide - 46, x + 8)), 32);
  }
}

function drawWindow() {
  const window = viewer?.currentWindow?.(), box = $("window-box"), array = viewer?.arrays?.input;
  const deep = window && (viewer.kind === "volume" || (array && !(array.data instanceof Uint8Array)) || viewer.window);
  box.hidden = !deep;
  if (deep) $("window-text").textContent = `${short(window[0])} to ${short(window[1])}`;
  $("ranges").hidden = $("colour-box").hidden && $("opacity-box").hidden && box.hidden;
}

function drawStatistics() {
  $("threshold").hidden = !threshold || hidden();
  if (!threshold || hidden()) return;
  const c = threshold.counts(), pairs = [];
  const row = (name, value, range = "") => pairs.push(element("dt", {}, name), element("dd", {}, value, " ", range ? element("span", { class: "range" }, range) : ""));
  const rate = (k, n) => { const [low, high] = wilson(k, n); return n ? `${percent(low)} – ${percent(high)}` : ""; };
  row("Flagged", `${(c.flagged ?? 0).toLocaleString("en-GB")} of ${c.total.toLocaleString("en-GB")}`);
  row("False alarms", c.normal ? `${c.false} of ${c.normal}` : "–", rate(c.false, c.normal));
  row("Detections", c.anomalous ? `${c.found} of ${c.anomalous}` : "–", rate(c.found, c.anomalous));
  if (c.rate !== null && c.rate !== undefined) row("Guaranteed", `≤ ${percent(c.rate)}`, "of normal images");
  $("statistics").replaceChildren(...pairs);
  $("threshold-value").textContent = short(threshold.value);
  $("threshold-reset").hidden = threshold.start === null || threshold.value === threshold.start;
  $("statistics-note").textContent = c.normal + c.anomalous ? "Of the images reviewed so far, with 95 % intervals." : "Review images to see false alarms and detections.";
}

let estimating = 0;
function drawEstimates() {
  clearTimeout(estimating);
  $("estimates").hidden = !app.facts.informative || hidden() || $("order").value !== "informative";
  if ($("estimates").hidden) return;
  estimating = setTimeout(async () => {
    const found = await getJSON("/api/estimates").catch(() => null);
    if (!found) return;
    const names = { precision: "Precision", recall: "Recall", false_positive_rate: "False-positive rate", anomalous: "Anomalous" };
    const pairs = found.reason ? [] : Object.entries(names).flatMap(([key, name]) => [element("dt", {}, name), element("dd", {}, percent(found[key].value ?? NaN), " ", element("span", { class: "range" }, `${percent(found[key].low ?? NaN)} – ${percent(found[key].high ?? NaN)}`))]);
    $("estimate-list").replaceChildren(...pairs);
    $("estimate-note").textContent = found.reason || `At the calibrated threshold, from ${found.images} images in ${found.draws} draws of this order, weighted by how likely each was drawn.`;
  }, 250);
}

let fading = 0;
function say(text, bad = false) {
  $("toast").textContent = text;
  $("toast").className = `shown${bad ? " bad" : ""}`;
  clearTimeout(fading);
  fading = setTimeout(() => { $("toast").className = ""; }, bad ? 6000 : 2200);
}

// -- controls

function show(view) {
  for (const name of ["review", "agreement"]) { $(name).hidden = name !== view; $(`tab-${name}`).setAttribute("aria-pressed", String(name === view)); }
  if (view === "agreement") showAgreement($("agreement"), app).catch((fault) => say(fault.message, true));
  else drawAll();
}

const ACTIONS = {
  next: () => move(1), previous: () => move(-1),
  unreviewed: () => during(async () => { const image = await nextUnreviewed(); if (image === undefined) say("All images of this queue are reviewed."); else await openImage(image); }),
  withdraw, search: () => $("search").focus(), type: () => $("type").focus(), note: () => $("note").focus(),
  help: () => $("help").showModal(), agreement: () => show($("agreement").hidden ? "agreement" : "review"),
  blink: () => { viewer?.blink(); drawViews(); }, reset: () => viewer?.reset(),
  heat: () => { app.heat = !app.heat; viewer?.draw(); }, contours: () => { app.contours = !app.contours; remember("contours", app.contours); viewer?.draw(); drawViews(); },
  truth: () => { app.truth = !app.truth; viewer?.draw(); drawViews(); }, marks: () => { app.marks = !app.marks; viewer?.draw(); say(app.marks ? "Marks are shown." : "Marks are hidden."); },
  erase: () => { if (!viewer) return; viewer.erase = !viewer.erase; viewer.setTool(viewer.tool); drawTools(); },
  undo: () => { if (viewer?.undo()) say("Undone."); drawTools(); }, redo: () => { if (viewer?.redo()) say("Redone."); drawTools(); }, clear: () => { viewer?.clear(); drawTools(); },
  cancel: () => { if (!viewer?.cancel()) $("queue").classList.remove("open"); }, enter: () => viewer?.closePolygon?.(),
  leave: () => { document.activeElement.blur(); $("canvas").focus(); },
  entered: () => { if (document.activeElement.id === "type") enterType(); else document.activeElement.blur(); },
};

function act(action) {
  const [name, value] = action.split(":");
  if (name === "verdict") judge(value);
  else if (name === "kind") { const type = types[Number(value) - 1]; if (type) judge("anomalous", type); else say(`There is no type ${value} yet: press T to type one.`); }
  else if (name === "view") { if (viewer?.views().some(([id]) => id === value)) { viewer.setView(value); drawViews(); drawColour(); } else say(`This image has no ${value}.`); }
  else if (name === "tool") { if (viewer?.tools.includes(value) && !app.readOnly) { viewer.setTool(value); drawTools(); } }
  else if (name === "opacity") { app.opacity = Math.max(0, Math.min(1, Math.round((app.opacity + (value === "+" ? 0.1 : -0.1)) * 100) / 100)); remember("opacity", app.opacity); viewer?.draw(); drawColour(); }
  else if (name === "zoom") viewer?.zoomBy(value === "+" ? 1.25 : 0.8);
  else if (name === "size") { viewer?.brushSize(value === "+" ? 1.25 : 0.8); drawTools(); }
  else if (name === "slice") viewer?.step?.(Number(value));
  else ACTIONS[name]?.();
}

function enterType() {
  const type = $("type").value.trim().replace(/\s+/g, " ");
  $("type").value = "";
  $("type").blur();
  $("canvas").focus();
  if (type) judge("anomalous", type);
}

function listen() {
  document.addEventListener("keydown", (event) => {
    const action = actionOf(event);
    if (!action) return;
    if (!$("agreement").hidden && !["agreement", "help", "leave"].includes(action)) return;
    event.preventDefault();
    act(action);
  });
  for (const button of document.querySelectorAll(".verdict")) button.onclick = () => judge(button.dataset.verdict);
  $("next").onclick = () => act("next"); $("previous").onclick = () => act("previous"); $("undo-decision").onclick = () => withdraw();
  $("note").onblur = () => { if (current >= 0) saveMarks(); };
  $("tab-review").onclick = () => show("review"); $("tab-agreement").onclick = () => show("agreement");
  $("help-open").onclick = () => $("help").showModal();
  $("queue-toggle").onclick = () => { const open = $("queue").classList.toggle("open"); $("queue-toggle").setAttribute("aria-expanded", String(open)); list.refresh(); if (open) $("list").focus(); };
  let typing = 0;
  $("search").oninput = () => { clearTimeout(typing); typing = setTimeout(() => during(buildQueue), 120); };
  for (const id of ["order", "filter", "filter-type"]) {
    $(id).onchange = () => during(async () => {
      $(id).blur();
      if (!(await buildQueue()) || !queue.count) return;
      if (queue.at < 0) await go(queue.first);
      else if (id === "order" && !own(current)) await go(queue.unreviewed < 0 ? queue.first : queue.unreviewed);
    });
  }
  $("opacity").oninput = () => { app.opacity = Number($("opacity").value); remember("opacity", app.opacity); viewer?.draw(); };
  const value = (id) => viewer.bounds[0] + (Number($(id).value) / 1000) * (viewer.bounds[1] - viewer.bounds[0]);
  const range = () => {
    const [low, high] = [value("colour-low"), value("colour-high")];
    const fresh = low < high ? [low, high] : [Math.min(low, high), Math.min(low, high) + 1e-3 * (viewer.bounds[1] - viewer.bounds[0])];
    if (["map", "overlay", "input"].includes(viewer.shown())) app.range = fresh; else viewer.own = fresh;
    viewer.draw(); drawColour();
  };
  $("colour-low").oninput = range; $("colour-high").oninput = range;
  $("pixel-threshold").oninput = () => { app.pixelThreshold = value("pixel-threshold"); viewer.draw(); drawColour(); drawAbout(); };
  $("colour-box").ondblclick = () => { app.range = null; app.pixelThreshold = app.facts.pixel_threshold; viewer.draw(); drawColour(); drawAbout(); };
  $("window-reset").onclick = () => viewer.resetWindow();
  $("threshold-reset").onclick = () => threshold.set(threshold.start);
  $("reviewer").onclick = ask;
  $("ask-form").onsubmit = (event) => { if (event.submitter?.value === "ok") changeReviewer($("ask-name").value, $("ask-blind").checked); };
  addEventListener("resize", () => { list.refresh(); drawAll(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll());
  addEventListener("beforeunload", (event) => { if (viewer?.markChanged && viewer.hasMarks()) event.preventDefault(); });
  document.addEventListener("click", (event) => { if ($("queue").classList.contains("open") && !event.target.closest("#queue, #queue-toggle")) $("queue").classList.remove("open"); });
}

function ask() {
  $("ask-name").value = app.reviewer;
  $("ask-blind").checked = app.blind; $("ask-blind").disabled = app.facts.blind;
  $("ask").showModal();
}

async function changeReviewer(name, blind) {
  const clean = name.trim().replace(/\s+/g, " ");
  if (!clean) return;
  await saveMarks();
  if (viewer) viewer.markSaved();
  app.reviewer = clean; app.blind = blind || app.facts.blind;
  viewers.slide.facts && viewers.slide.draw();
  undone.length = 0; drafts.clear(); decisions.clear(); last = 0;
  if (!app.facts.blind) $("order").value = app.blind ? "random" : $("order").value;
  await poll();
  app.heat = !app.blind;
  if (viewer && app.blind) viewer.view = "input";
  setSelects();
  drawAll(); list.refresh(); // at once: nothing that a blind opinion must not see
  drawReviewer();
  await buildQueue();
  const next = current;
  current = -1;
  await go(next >= 0 ? next : queue.first);
}

function drawReviewer() {
  $("reviewer-name").textContent = app.reviewer + (hidden() ? " (blind)" : "");
  document.querySelector(".dot").className = `dot${hidden() ? " blind" : ""}`;
}

function setSelects() {
  const option = ([id, [name]]) => element("option", { value: id }, name);
  const order = $("order").value, filter = $("filter").value;
  $("order").replaceChildren(...Object.entries(ORDERS).filter(([id, [, there]]) => (!hidden() || ["random", "name"].includes(id)) && there()).map(option));
  $("filter").replaceChildren(...Object.entries(FILTERS).filter(([id, [, scored]]) => !(scored && hidden()) && !(["known", "good"].includes(id) && !app.facts.labels)).map(option));
  if (order) $("order").value = order;
  if (filter) $("filter").value = filter;
  if (!$("order").value) $("order").selectedIndex = 0;
  if (!$("filter").value) $("filter").selectedIndex = 0;
}

function fillHelp() {
  $("help-keys").replaceChildren(...KEYS.map(([title, keys]) => element("section", {}, element("h3", {}, title), element("dl", {}, keys.flatMap(([, shown, meaning]) => [element("dt", {}, ...shown.split("  ").map((k, n) => element("span", {}, n ? " " : "", element("kbd", {}, k)))), element("dd", {}, meaning)])))));
}

// -- start

async function start() {
  const facts = await getJSON("/api/facts");
  app.facts = facts; app.readOnly = facts.read_only; app.blind = facts.blind;
  app.pixelThreshold = facts.pixel_threshold;
  const name = remembered("reviewer", "");
  app.reviewer = facts.reviewer || name || "reviewer";
  $("title-data").textContent = facts.data || facts.name;
  $("title-method").textContent = [facts.methods?.join(", "), facts.name !== facts.data ? facts.name : ""].filter(Boolean).join(" · ");
  document.title = `${facts.data || facts.name} · review`;
  $("notice").hidden = !facts.notice; $("notice").textContent = facts.notice;
  viewers = { image: new Viewer($("canvas"), app), volume: new VolumeView($("gl"), app), slide: new SlideView($("slide"), app) };
  if (hidden()) viewers.image.view = viewers.volume.view = viewers.slide.view = "input";
  await poll();
  list = new List($("list"), partOf, fillItem, (image) => { $("queue").classList.remove("open"); go(image); });
  setSelects();
  drawReviewer(); fillHelp(); listen();
  if (!hidden() && facts.scores) {
    const change = () => { drawStatistics(); clearTimeout(change.later); change.later = setTimeout(() => list.refresh(), 80); };
    threshold = new Threshold($("histogram"), facts, reviewed, during, change);
    await threshold.ask();
  }
  for (const kind of facts.anomalies) if (!hidden() && types.length < 9) addType(kind);
  if (facts.order && ORDERS[facts.order]?.[1]()) $("order").value = facts.order;
  await buildQueue(false);
  const asked = Number(location.hash.slice(1)) - 1;
  await go(Number.isInteger(asked) && asked >= 0 && asked < facts.count ? asked : queue.unreviewed < 0 ? queue.first : queue.unreviewed);
  document.body.dataset.ready = "yes";
  setInterval(poll, 3000);
}

start().catch((fault) => { app.facts ??= {}; showEmpty(`The review cannot start: ${fault.message}`); });
