// A slider for each category, and what would change.

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
    const height = (20 * Math.sqrt(count)) / highest; // of roots: a few at the upper end still show
    for (const [name, value] of [
      ["x", i + 0.1],
      ["width", 0.8],
      ["y", 20 - height],
      ["height", height],
    ])
      bar.setAttribute(name, value);
    svg.append(bar);
    return bar;
  });
  const value = element("output", { for: input.id }),
    effect = element("p"),
    known = element("p");
  const reset = element("button", { type: "button", onclick: () => set(c, stated[c]) }, "as it was");
  const box = element(
    "div",
    { class: "slider" },
    element(
      "div",
      { class: "head" },
      element("label", { for: input.id }, category.name),
      badge(category.action),
      reset,
      value,
    ),
    svg,
    input,
    effect,
    known,
  );
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
    const { input, bars, value, effect, known, reset } = sliders[c],
      threshold = kept.thresholds[c];
    let before = 0,
      now = 0,
      right = 0,
      wrong = 0,
      missed = 0;
    PICTURES.forEach((picture, i) => {
      const finding = picture.findings.find((one) => one.category === c);
      if (!finding) return;
      const isHit = finding.score >= threshold,
        decision = kept.decisions[i];
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
    effect.textContent = isSame
      ? `${plural(before, "picture", "pictures")}; threshold ${category.origin}`
      : `${before} → ${plural(now, "picture", "pictures")}; was ${digits(stated[c])}`;
    if (DATA.complete_above !== null && threshold - stated[c] < DATA.complete_above)
      effect.append("; there may be more, not on this page");
    known.textContent =
      right + wrong + missed ? `of those reviewed: ${right} right, ${wrong} wrong, ${missed} missed` : "";
    reset.hidden = isSame;
    bars.forEach((bar, i) => bar.classList.toggle("over", (i + 0.5) / 50 >= threshold));
  });
  const tally = (thresholds) => {
    const found = { allow: 0, flag: 0, block: 0 };
    for (const picture of PICTURES) found[outcome(picture, thresholds)] += 1;
    return found;
  };
  const before = tally(stated),
    now = tally(kept.thresholds),
    changed = PICTURES.filter(isChanged).length;
  const part = (action) => `${before[action]} → ${now[action]} ${DONE[action]}`;
  by("change").textContent = isMoved()
    ? `${part("flag")}, ${part("block")}; ${plural(changed, "picture changes", "pictures change")}`
    : `as they were: ${before.flag} flagged, ${before.block} blocked`;
  by("show-changed").disabled = changed === 0;
  by("reset-all").disabled = by("export-thresholds").disabled = !isMoved();
}
