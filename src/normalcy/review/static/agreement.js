// The view of agreement: pairs of reviewers, Cohen's kappa, Dice of masks, the images on which they differ.

import { getJSON } from "./api.js";

const WORDS = ["normal", "anomalous", "unsure"];

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** In the words of Landis and Koch (1977). */
function meaning(kappa) {
  if (kappa === null) return "not defined: both always say the same";
  const named = [[0.8, "almost perfect"], [0.6, "substantial"], [0.4, "moderate"], [0.2, "fair"], [0, "slight"], [-Infinity, "poor"]];
  return named.find(([bound]) => kappa > bound || (bound === 0 && kappa >= 0))[1];
}

export async function showAgreement(root, app) {
  const found = await getJSON("/api/agreement");
  root.replaceChildren(element("h2", {}, "Agreement of reviewers"));
  if (!found.pairs?.length) {
    const names = found.reviewers?.length ? ` So far: ${found.reviewers.join(", ")}.` : "";
    root.append(element("p", { class: "soft" }, `Two reviewers who decide the same images are compared here.${names} Change the reviewer at the top right for a second opinion; "blind" hides the first.`));
    return;
  }
  await app.load([...new Set(found.pairs.flatMap((pair) => [...pair.apart.slice(0, 24), ...pair.masks.slice(0, 12).map((one) => one.image)]))]);
  root.append(element("p", { class: "soft" }, "Cohen's kappa counts agreement beyond chance: 1 is perfect, 0 what chance alone would give. Dice compares masks: 2 |A ∩ B| / (|A| + |B|), over images that both marked."));
  root.append(element("div", { class: "pairs" }, found.pairs.map((pair) => card(pair, app))));
}

function card(pair, app) {
  const used = WORDS.map((_, k) => k).filter((k) => k < 2 || pair.counts[k].some(Boolean) || pair.counts.some((row) => row[k]));
  const head = element("tr", {}, element("td", {}, `${pair.first} ↓ ${pair.second} →`), used.map((k) => element("th", { scope: "col" }, WORDS[k])));
  const rows = used.map((a) => element("tr", {}, element("th", { scope: "row" }, WORDS[a]), used.map((b) => {
    const n = pair.counts[a][b];
    return element("td", { class: a === b ? "same" : `apart${n ? "" : " zero"}` }, String(n));
  })));
  const number = (value, name) => element("div", { class: "number" }, element("b", {}, value), element("span", { class: "soft" }, name));
  const jump = (image, text) => element("button", { type: "button", onclick: () => app.jump(image), title: app.nameOf(image) },
    element("img", { src: `/thumb/${image}`, alt: app.nameOf(image), loading: "lazy" }), text);
  return element("article", { class: "pair" },
    element("h3", {}, `${pair.first} and ${pair.second}`),
    element("div", { class: "numbers" },
      number(pair.kappa === null ? "–" : pair.kappa.toFixed(2), `kappa, ${meaning(pair.kappa)}`),
      number(String(pair.images), pair.images === 1 ? "image both decided" : "images both decided"),
      pair.dice === null ? null : number(pair.dice.toFixed(2), `Dice of ${pair.masks.length} ${pair.masks.length === 1 ? "mask" : "masks"}`)),
    element("table", {}, element("tbody", {}, head, rows)),
    pair.apart.length ? element("p", { class: "soft" }, `They differ on ${pair.apart.length}:`) : element("p", { class: "soft" }, "They agree on every image."),
    element("div", { class: "links" }, pair.apart.slice(0, 24).map((image) => jump(image, ""))),
    pair.masks.length ? element("p", { class: "soft" }, "Masks, the least alike first:") : null,
    pair.masks.length ? element("div", { class: "links" }, pair.masks.slice(0, 12).map((one) => jump(one.image, one.dice.toFixed(2)))) : null);
}
