// What is known of the pictures, and what was decided: the first part of the script of the review page.
// Everything that is shown comes from the JSON beside the script, and is set as text.

const DATA = JSON.parse(document.getElementById("data").textContent);
const { categories: CATEGORIES, pictures: PICTURES } = DATA;
const ACTIONS = ["allow", "flag", "block"];
const DONE = { allow: "allowed", flag: "flagged", block: "blocked" };
const SIGN = { allow: "○", flag: "⚑", block: "✕" };
const KEY = ["everyclip review", DATA.policy.fingerprint, DATA.model, DATA.set].join(" ");

const by = (id) => document.getElementById(id);
const digits = (value, count = 3) => value.toFixed(count);
const plural = (count, one, many) =>
  `${count.toLocaleString("en").replace(/,/g, "\u202f")} ${count === 1 ? one : many}`;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "onclick") made.addEventListener("click", value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const stated = CATEGORIES.map((category) => category.threshold);
const kept = { decisions: {}, thresholds: [...stated], blur: "some", keys: true };
const history = []; // of this visit: [picture, the decision before]
const veil = {}; // picture → whether it is blurred, where that was asked for by key
let order = []; // pictures as they are listed
let chosen = -1;

function load() {
  try {
    const text = localStorage.getItem(KEY);
    if (text === null) return;
    const found = JSON.parse(text);
    kept.decisions = found.decisions ?? {};
    kept.blur = found.blur ?? "some";
    kept.keys = found.keys ?? true;
    // A threshold that was not moved is the policy's, to the last digit.
    kept.thresholds = CATEGORIES.map((category, i) => found.thresholds?.[category.name] ?? stated[i]);
  } catch {
    by("not-kept").hidden = false;
  }
}

function save() {
  const moved = {};
  CATEGORIES.forEach((category, i) => {
    if (kept.thresholds[i] !== stated[i]) moved[category.name] = kept.thresholds[i];
  });
  try {
    localStorage.setItem(KEY, JSON.stringify({ ...kept, thresholds: moved }));
  } catch {
    by("not-kept").hidden = false;
  }
}

function say(text) {
  by("said").textContent = text;
}
