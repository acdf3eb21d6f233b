// What the review page does. Everything that is shown comes from the JSON beside this script and is set as text.
"use strict";
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const CATEGORIES = DATA.categories, PICTURES = DATA.pictures;
  const ACTIONS = ["allow", "flag", "block"];
  const DONE = { allow: "allowed", flag: "flagged", block: "blocked" };
  const SIGN = { allow: "○", flag: "⚑", block: "✕" };
  const KEY = ["everyclip review", DATA.policy.fingerprint, DATA.model, DATA.set].join(" ");

  const by = (id) => document.getElementById(id);
  const digits = (value, count = 3) => value.toFixed(count);
  const plural = (count, one, many) => `${count.toLocaleString("en").replace(/,/g, "\u202f")} ${count === 1 ? one : many}`;

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

  // State ------------------------------------------------------------------------------------------------------------

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
    } catch { by("not-kept").hidden = false; }
  }

  function save() {
    const moved = {};
    CATEGORIES.forEach((category, i) => {
      if (kept.thresholds[i] !== stated[i]) moved[category.name] = kept.thresholds[i];
    });
    try { localStorage.setItem(KEY, JSON.stringify({ ...kept, thresholds: moved })); }
    catch { by("not-kept").hidden = false; }
  }

  function say(text) { by("said").textContent = text; }

  // What follows from scores -----------------------------------------------------------------------------------------

  const margin = (picture, thresholds) =>
    Math.max(-Infinity, ...picture.findings.map((finding) => finding.score - thresholds[finding.category]));

  function outcome(picture, thresholds) {
    if (!picture.findings.length) return picture.action;
    let found = 0;
    for (const finding of picture.findings)
      if (finding.score >= thresholds[finding.category])
        found = Math.max(found, ACTIONS.indexOf(finding.action_if_hit));
    return ACTIONS[found];
  }

  const isMoved = () => kept.thresholds.some((threshold, i) => threshold !== stated[i]);
  const isChanged = (picture) => outcome(picture, kept.thresholds) !== outcome(picture, stated);
  const foundIn = (picture) => picture.findings.filter((finding) => finding.is_hit).map((finding) => finding.category).sort((a, b) => a - b);
  const same = (left, right) => left.length === right.length && left.every((value, i) => value === right[i]);
  const names = (categories) => categories.map((i) => CATEGORIES[i].name).join(", ");
  const isRight = (i) => same(kept.decisions[i], foundIn(PICTURES[i]));

  // Decisions --------------------------------------------------------------------------------------------------------

  function put(i, decision) {
    if (decision === undefined) delete kept.decisions[i];
    else kept.decisions[i] = decision;
    save();
    paint(i);
    progress();
    counts();
  }

  function decide(i, decision, advance) {
    history.push([i, kept.decisions[i]]);
    put(i, decision);
    say(`${PICTURES[i].name}: ${decisionText(i)}. ${by("progress-text").textContent}`);
    if (advance) {
      const place = order.indexOf(i);
      const next = order.slice(place + 1).find((other) => !(other in kept.decisions)) ?? order[place + 1];
      if (next !== undefined) return choose(next);
    }
    panel();
  }

  function accept(i) { decide(i, foundIn(PICTURES[i]), true); }

  function reject(i) {
    const found = foundIn(PICTURES[i]);
    if (found.length || !PICTURES[i].findings.length) decide(i, [], true);
    else if (CATEGORIES.length === 1) decide(i, [0], true);
    else say("Nothing was found here. If that is wrong, say which category it is, by its number.");
  }

  function toggle(i, category) {
    if (!PICTURES[i].findings.length) return;
    const now = kept.decisions[i] ?? foundIn(PICTURES[i]);
    const decision = now.includes(category) ? now.filter((other) => other !== category) : [...now, category];
    decide(i, decision.sort((a, b) => a - b), false);
  }

  function undo() {
    const last = history.pop();
    if (!last) return say("There is nothing to undo.");
    put(last[0], last[1]);
    say(`Undone: ${PICTURES[last[0]].name}.`);
    choose(last[0]);
  }

  function forget(i) {
    if (i in kept.decisions) decide(i, undefined, false);
  }

  function decisionText(i) {
    const decision = kept.decisions[i];
    if (decision === undefined) return "not reviewed";
    if (!PICTURES[i].findings.length) return "reviewed, cannot be read";
    if (isRight(i)) return "verdict right";
    return decision.length ? `is ${names(decision)}` : "none of the categories";
  }

  // Cards ------------------------------------------------------------------------------------------------------------

  function pictureOf(picture, large) {
    if (!picture.copy) return element("div", { class: "picture missing" }, picture.problem);
    // The name stands beside it; what it shows, nobody knows yet.
    const image = element("img", { src: picture.copy, alt: "", decoding: "async" });
    return element(large && picture.link ? "a" : "div",
      { class: "picture", href: large ? picture.link : null, target: large && picture.link ? "_blank" : null,
        rel: large && picture.link ? "noopener" : null, "aria-label": large && picture.link ? "Open the file" : null }, image);
  }

  const badge = (action) => element("span", { class: `badge ${action}` }, `${SIGN[action]} ${action}`);

  const cards = PICTURES.map((picture, i) => {
    const card = element("li", { class: "card", role: "option", id: `picture-${i}`, tabindex: "-1", "aria-selected": "false" },
      pictureOf(picture, false), element("div", { class: "line" }), element("p", { class: "top" }), element("p", { class: "name", title: picture.name }, element("bdi", {}, picture.name)));
    card.addEventListener("click", () => choose(i));
    card.addEventListener("focus", () => { if (chosen !== i) choose(i); });
    return card;
  });

  function isVeiled(i) {
    if (kept.blur !== "some") return kept.blur === "all";
    return PICTURES[i].findings.some((finding) => finding.is_hit && ["high", "critical"].includes(finding.severity));
  }

  function paintVeil(node, i) {
    node.classList.toggle("veiled", veil[i] ?? isVeiled(i));
    node.classList.toggle("kept-veiled", veil[i] === true);
  }

  function paint(i) {
    const picture = PICTURES[i], card = cards[i], decision = kept.decisions[i];
    const after = outcome(picture, kept.thresholds), changed = isMoved() && isChanged(picture);
    const top = picture.findings[0];
    const mark = decision === undefined ? null
      : isRight(i) || !picture.findings.length ? element("span", { class: "mark right" }, "✓ right")
      : element("span", { class: "mark wrong" }, decision.length ? `✎ ${names(decision)}` : "✗ wrong");
    card.querySelector(".line").replaceChildren(
      badge(picture.action), ...(changed ? ["→", badge(after)] : []),
      ...(mark ? [mark] : []));
    card.querySelector(".top").textContent = top ? `${CATEGORIES[top.category].name} ${digits(top.score, 2)}` : "";
    card.classList.toggle("decided", decision !== undefined);
    card.classList.toggle("changed", changed);
    paintVeil(card, i);
    const what = top ? `${CATEGORIES[top.category].name} ${digits(top.score, 2)}` : "cannot be read";
    const would = changed ? `, would be ${DONE[after]}` : "";
    card.setAttribute("aria-label", `${picture.name}: ${DONE[picture.action]}, ${what}${would}, ${decisionText(i)}`);
  }

  function progress() {
    const count = Object.keys(kept.decisions).length;
    by("progress").max = Math.max(1, PICTURES.length);
    by("progress").value = count;
    by("progress-text").textContent = `${count} of ${PICTURES.length} reviewed`;
  }

  // The list ---------------------------------------------------------------------------------------------------------

  function scoreOf(picture, category) {
    const scores = picture.findings.filter((finding) => category < 0 || finding.category === category).map((finding) => finding.score);
    return scores.length ? Math.max(...scores) : null;
  }

  function list() {
    const category = Number(by("category").value), action = by("action").value, state = by("state").value;
    const from = Number(by("from").value || 0), to = Number(by("to").value || 1), sort = by("sort").value;
    const isShown = (picture, i) => {
      const score = scoreOf(picture, category), decision = kept.decisions[i];
      if (score === null ? from > 0 || to < 1 || category >= 0 : score < from || score > to) return false;
      if (category >= 0 && action !== "all" && ["found", "block", "flag"].includes(action)
        && !foundIn(picture).includes(category)) return false;
      if (action === "found" ? picture.action === "allow" : ACTIONS.includes(action) && picture.action !== action) return false;
      if (action === "unreadable" && picture.findings.length) return false;
      if (action === "noted" && !picture.notes.length) return false;
      if (action === "changed" && !isChanged(picture)) return false;
      if (state === "no" && decision !== undefined) return false;
      if (state === "yes" && decision === undefined) return false;
      return state !== "wrong" || (decision !== undefined && picture.findings.length > 0 && !isRight(i));
    };
    const marginOf = (picture) => picture.findings.length === 0 ? Infinity
      : category < 0 ? margin(picture, stated) : scoreOf(picture, category) - stated[category];
    const nearness = (picture) => Math.min(Infinity, ...picture.findings
      .filter((finding) => category < 0 || finding.category === category)
      .map((finding) => Math.abs(finding.score - kept.thresholds[finding.category])));
    const keys = {
      margin: (picture) => -marginOf(picture),
      near: nearness,
      score: (picture) => -(scoreOf(picture, category) ?? 2),
      low: (picture) => scoreOf(picture, category) ?? 2,
      given: (_, i) => i,
      name: (picture) => picture.name,
    };
    const key = new Map(PICTURES.map((picture, i) => [i, keys[sort](picture, i)]));
    order = PICTURES.map((_, i) => i).filter((i) => isShown(PICTURES[i], i));
    order.sort((a, b) => (key.get(a) < key.get(b) ? -1 : key.get(a) > key.get(b) ? 1 : a - b));
    by("pictures").replaceChildren(...order.map((i) => cards[i]));
    by("nothing").hidden = order.length > 0;
    by("listed").textContent = order.length === PICTURES.length ? "" : `${order.length} of ${PICTURES.length} pictures are listed.`;
    if (order.length && !order.includes(chosen)) choose(order[0], false);
    else panel();
  }

  function choose(i, focus = true) {
    if (chosen >= 0) {
      cards[chosen].setAttribute("aria-selected", "false");
      cards[chosen].tabIndex = -1;
    }
    chosen = i;
    cards[i].setAttribute("aria-selected", "true");
    cards[i].tabIndex = 0;
    panel();
    if (!focus || !cards[i].isConnected) return;
    cards[i].focus({ preventScroll: true });
    cards[i].scrollIntoView({ block: "nearest" });
  }

  function move(by) {
    if (!order.length) return;
    const place = order.indexOf(chosen);
    choose(order[Math.min(order.length - 1, Math.max(0, place < 0 ? 0 : place + by))]);
  }

  function columns() {
    const first = order.length ? cards[order[0]].offsetTop : 0;
    const row = order.findIndex((i) => cards[i].offsetTop !== first);
    return row < 0 ? Math.max(1, order.length) : row;
  }

  // The panel --------------------------------------------------------------------------------------------------------

  const key = (name) => element("kbd", {}, name);
  const button = (text, shortcut, onclick, pressed) => element("button",
    { type: "button", onclick, "aria-keyshortcuts": shortcut, "aria-pressed": pressed === undefined ? null : String(pressed) },
    text, " ", key(shortcut === "Space" ? "␣" : shortcut));

  function panel() {
    const box = by("panel");
    const focused = [...box.querySelectorAll("button")].indexOf(document.activeElement);
    if (chosen < 0) return box.replaceChildren(element("p", { class: "muted" }, "No pictures."));
    const i = chosen, picture = PICTURES[i], decision = kept.decisions[i], after = outcome(picture, kept.thresholds);
    const nowFound = decision ?? foundIn(picture);
    const state = decision === undefined ? "muted" : isRight(i) || !picture.findings.length ? "right" : "wrong";
    const fold = button(box.classList.contains("open") ? "Less" : "More", "", () => { box.classList.toggle("open"); panel(); });
    fold.id = "fold";
    fold.setAttribute("aria-expanded", String(box.classList.contains("open")));
    paintVeil(box, i);
    box.replaceChildren(...[
      pictureOf(picture, true),
      element("h2", {}, element("bdi", {}, picture.name)),
      element("p", {}, badge(picture.action), ...(after !== picture.action && isMoved() ? [" → ", badge(after)] : []), " ",
        element("span", { class: state }, decisionText(i))),
      element("div", { class: "buttons" }, ...[
        button("Right", "a", () => accept(i), decision !== undefined && isRight(i)),
        button("Wrong", "r", () => reject(i), decision !== undefined && !isRight(i)),
        button("Undo", "u", undo), picture.copy ? button(veil[i] ?? isVeiled(i) ? "Show" : "Blur", "Space", () => unveil(i)) : null, fold].filter(Boolean)),
      picture.findings.length === 0 ? null : element("div", { class: "buttons", role: "group", "aria-label": "Shows" },
        ...CATEGORIES.map((category, c) => button(category.name, c < 9 ? String(c + 1) : "", () => toggle(i, c), nowFound.includes(c)))),
      element("div", { class: "more" }, ...details(picture)),
    ].filter(Boolean));
    if (focused >= 0) box.querySelectorAll("button")[focused]?.focus({ preventScroll: true });
  }

  function details(picture) {
    return [
      element("p", { class: "muted" }, element("bdi", {}, picture.folder)),
      picture.error === null ? null : element("p", { class: "bad" }, picture.error),
      ...picture.notes.map((note) => element("p", { class: "note" }, note)),
      ...picture.findings.map((finding) => {
        const above = finding.score - finding.threshold;
        const scale = element("div", { class: "scale", "aria-hidden": "true" }, element("i"), element("u"));
        scale.firstChild.style.width = `${100 * finding.score}%`;
        scale.lastChild.style.left = `calc(${100 * kept.thresholds[finding.category]}% - 1px)`;
        return element("div", { class: `finding${finding.is_hit ? " hit" : ""}` },
          element("div", { class: "head" }, element("b", {}, CATEGORIES[finding.category].name),
            finding.is_hit ? badge(finding.action) : null,
            finding.is_hit ? element("span", { class: "muted" }, `severity ${finding.severity}`) : null,
            element("b", {}, digits(finding.score))),
          scale,
          element("p", {}, `“${finding.prompt}” `, element("span", { class: "muted" }, `in ${finding.view}`)),
          element("p", { class: "muted" }, `threshold ${digits(finding.threshold)} (${finding.threshold_origin}), margin ${above < 0 ? "−" : "+"}${digits(Math.abs(above))}`),
          finding.exemption === null ? null : element("p", {}, `Exempt: ${finding.exemption}`),
          finding.reservation === null ? null : element("p", {}, `Milder: ${finding.reservation}`));
      }),
      element("div", { class: "finding prints" },
        element("p", {}, plural(picture.frames, "frame", "frames"), " looked at"),
        picture.sha256 === null ? null : element("p", {}, "file ", element("code", {}, picture.sha256)),
        element("p", {}, "policy ", element("code", {}, DATA.policy.fingerprint)),
        element("p", {}, "model ", element("code", {}, DATA.model))),
    ].filter(Boolean);
  }

  function unveil(i) {
    veil[i] = !(veil[i] ?? isVeiled(i));
    paint(i);
    panel();
    say(veil[i] ? "Blurred." : "Shown.");
  }

  // Thresholds -------------------------------------------------------------------------------------------------------

  const sliders = CATEGORIES.map((category, c) => {
    const input = element("input", { type: "range", min: "0", max: "1", step: "0.005", id: `threshold-${c}` });
    input.value = kept.thresholds[c];
    input.addEventListener("input", () => set(c, Number(input.value)));
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 50 20");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    const bins = new Array(50).fill(0);
    for (const picture of PICTURES)
      for (const finding of picture.findings)
        if (finding.category === c) bins[Math.min(49, Math.floor(finding.score * 50))] += 1;
    const highest = Math.sqrt(Math.max(1, ...bins));
    const bars = bins.map((count, i) => {
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const height = 20 * Math.sqrt(count) / highest; // of roots: a few at the upper end still show
      for (const [name, value] of [["x", i + 0.1], ["width", 0.8], ["y", 20 - height], ["height", height]]) bar.setAttribute(name, value);
      svg.append(bar);
      return bar;
    });
    const value = element("output", { for: input.id }), effect = element("p"), known = element("p");
    const reset = element("button", { type: "button", onclick: () => set(c, stated[c]) }, "as it was");
    const box = element("div", { class: "slider" },
      element("div", { class: "head" }, element("label", { for: input.id }, category.name), badge(category.action), reset, value),
      svg, input, effect, known);
    if (category.description) box.firstChild.firstChild.title = category.description;
    by("sliders").append(box);
    return { input, bars, value, effect, known, reset };
  });

  function set(c, threshold) {
    kept.thresholds[c] = threshold;
    save();
    thresholdsMoved();
  }

  function thresholdsMoved() {
    PICTURES.forEach((_, i) => paint(i));
    counts();
    panel();
  }

  function counts() {
    CATEGORIES.forEach((category, c) => {
      const { input, bars, value, effect, known, reset } = sliders[c], threshold = kept.thresholds[c];
      let before = 0, now = 0, right = 0, wrong = 0, missed = 0;
      PICTURES.forEach((picture, i) => {
        const finding = picture.findings.find((one) => one.category === c);
        if (!finding) return;
        const isHit = finding.score >= threshold, decision = kept.decisions[i];
        before += finding.score >= stated[c];
        now += isHit;
        if (decision === undefined) return;
        right += isHit && decision.includes(c);
        wrong += isHit && !decision.includes(c);
        missed += !isHit && decision.includes(c);
      });
      if (Number(input.value) !== threshold) input.value = threshold;
      const isSame = threshold === stated[c];
      value.textContent = digits(threshold);
      input.setAttribute("aria-valuetext", `${digits(threshold)}, ${plural(now, "picture", "pictures")}`);
      effect.textContent = isSame ? `${plural(before, "picture", "pictures")}; threshold ${category.origin}` : `${before} → ${plural(now, "picture", "pictures")}; was ${digits(stated[c])}`;
      if (DATA.complete_above !== null && threshold - stated[c] < DATA.complete_above) effect.append("; more that are not on this page");
      known.textContent = right + wrong + missed ? `of those reviewed: ${right} right, ${wrong} wrong, ${missed} missed` : "";
      reset.hidden = isSame;
      bars.forEach((bar, i) => bar.classList.toggle("over", (i + 0.5) / 50 >= threshold));
    });
    const tally = (thresholds) => {
      const found = { allow: 0, flag: 0, block: 0 };
      for (const picture of PICTURES) found[outcome(picture, thresholds)] += 1;
      return found;
    };
    const before = tally(stated), now = tally(kept.thresholds), changed = PICTURES.filter(isChanged).length;
    const part = (action) => `${before[action]} → ${now[action]} ${DONE[action]}`;
    by("change").textContent = isMoved()
      ? `${part("flag")}, ${part("block")}; ${plural(changed, "picture changes", "pictures change")}`
      : `as they were: ${before.flag} flagged, ${before.block} blocked`;
    by("show-changed").disabled = changed === 0;
    by("reset-all").disabled = by("export-thresholds").disabled = !isMoved();
  }

  // What is taken away -----------------------------------------------------------------------------------------------

  const field = (text) => (/[",\r\n]|^\s|\s$/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);

  function labels() {
    const rows = ["path,category,label"];
    for (const i of Object.keys(kept.decisions).map(Number).sort((a, b) => a - b)) {
      const picture = PICTURES[i];
      if (!picture || !picture.findings.length) continue; // of what cannot be read, nothing can be learnt
      CATEGORIES.forEach((category, c) => rows.push(`${field(picture.path)},${category.name},${kept.decisions[i].includes(c) ? "yes" : "no"}`));
    }
    return rows.join("\n") + "\n";
  }

  function thresholdsText() {
    const moved = CATEGORIES.map((category, c) => [category, c]).filter(([, c]) => kept.thresholds[c] !== stated[c]);
    return ["# Changed on the review page. In the policy each takes the place of its category's threshold or target.",
      `# policy ${DATA.policy.fingerprint}`, `# model ${DATA.model}`, "categories:",
      ...moved.flatMap(([category, c]) => [`  ${category.name}:`, `    threshold: ${kept.thresholds[c]}  # was ${digits(stated[c])}, ${category.origin}`])].join("\n") + "\n";
  }

  // A name that is not UTF-8 came with each such byte as U+DC80 to U+DCFF, as Python has it; here they are bytes again.
  function bytes(text) {
    const encoder = new TextEncoder(), parts = [];
    for (const part of text.split(/([\uDC80-\uDCFF])/u))
      parts.push(/^[\uDC80-\uDCFF]$/u.test(part) ? Uint8Array.of(part.charCodeAt(0) - 0xDC00) : encoder.encode(part));
    return parts;
  }

  let taken = { text: "", file: "", type: "" };

  function take(title, about, text, file, type) {
    taken = { text, file, type };
    by("export-title").textContent = title;
    by("export-about").textContent = about;
    by("export-text").value = text;
    by("copied").textContent = "";
    by("export").showModal();
  }

  function takeLabels() {
    const text = labels(), rows = text.split("\n").length - 2, odd = PICTURES.filter((picture, i) => i in kept.decisions && /[\uDC80-\uDCFF]/u.test(picture.path)).length;
    const warning = odd ? ` ${plural(odd, "path is", "paths are")} not UTF-8: the file has them byte by byte, a copy of the text has not.` : "";
    take("Labels", `${plural(rows, "label", "labels")} of ${plural(Object.keys(kept.decisions).length, "picture", "pictures")}, for clip moderate --fit.${warning}`, text, "labels.csv", "text/csv");
  }

  by("download").addEventListener("click", () => {
    const address = URL.createObjectURL(new Blob(bytes(taken.text), { type: taken.type }));
    element("a", { href: address, download: taken.file }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
  });

  by("copy").addEventListener("click", () => {
    by("export-text").select();
    // The clipboard of scripts is closed to files; this way is open everywhere.
    by("copied").textContent = document.execCommand("copy") ? "Copied." : "Selected: copy it by Ctrl and C.";
  });

  // Keys -------------------------------------------------------------------------------------------------------------

  const isTyping = (target) => target instanceof Element && target.closest("input, select, textarea, dialog") !== null;

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Escape" && chosen >= 0) return choose(chosen);
    if (isTyping(event.target)) return;
    const inControl = event.target instanceof Element && event.target.closest("button, a, summary") !== null;
    const inList = event.target === document.body || by("pictures").contains(event.target);
    const everywhere = { "?": () => by("help").showModal() };
    const arrows = { ArrowRight: () => move(1), ArrowLeft: () => move(-1), ArrowDown: () => move(columns()), ArrowUp: () => move(-columns()),
      Home: () => move(-order.length), End: () => move(order.length) };
    const single = { j: () => move(1), k: () => move(-1), a: () => accept(chosen), r: () => reject(chosen), u: undo, x: () => forget(chosen) };
    let what = everywhere[event.key] ?? (inList ? arrows[event.key] : undefined);
    if (kept.keys && chosen >= 0) {
      what ??= single[event.key];
      if (event.key === " " && !inControl) what = () => unveil(chosen);
      if (/^[1-9]$/.test(event.key) && Number(event.key) <= CATEGORIES.length) what = () => toggle(chosen, Number(event.key) - 1);
    }
    if (!what || event.repeat && /^[aru]$/.test(event.key)) return;
    event.preventDefault();
    what();
  });

  // Beginning --------------------------------------------------------------------------------------------------------

  by("category").append(element("option", { value: "-1" }, "all"), ...CATEGORIES.map((category, c) => element("option", { value: c }, category.name)));
  const filters = ["category", "action", "state", "from", "to", "sort"];
  for (const id of filters) by(id).addEventListener("change", list);
  by("clear").addEventListener("click", () => {
    for (const [id, value] of [["category", "-1"], ["action", "all"], ["state", "all"], ["from", "0"], ["to", "1"]]) by(id).value = value;
    list();
  });
  by("show-changed").addEventListener("click", () => { by("action").value = "changed"; list(); });
  by("reset-all").addEventListener("click", () => { kept.thresholds = [...stated]; save(); thresholdsMoved(); });
  by("export-labels").addEventListener("click", takeLabels);
  by("export-thresholds").addEventListener("click", () => take("Thresholds", "Put these in place of those in your policy.", thresholdsText(), "thresholds.yaml", "text/yaml"));
  by("help-button").addEventListener("click", () => by("help").showModal());
  by("keys-on").addEventListener("change", () => { kept.keys = by("keys-on").checked; save(); });
  by("blur").addEventListener("change", () => { kept.blur = by("blur").value; for (const i of Object.keys(veil)) delete veil[i]; save(); thresholdsMoved(); });

  function begin() {
    load();
    by("blur").value = kept.blur;
    by("keys-on").checked = kept.keys;
    PICTURES.forEach((_, i) => paint(i));
    progress();
    counts();
    list();
  }

  addEventListener("storage", (event) => { if (event.key === KEY) begin(); }); // decided in another tab
  by("about").textContent = `${plural(DATA.total, "picture", "pictures")} held against the policy ${DATA.policy.name}. Nothing here changes a file.`;
  if (matchMedia("(max-width: 60rem)").matches) by("filters").open = false;
  by("review").hidden = false;
  begin();
})();
