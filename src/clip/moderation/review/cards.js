// The pictures of the grid.

function pictureOf(picture, large) {
  if (!picture.copy) return element("div", { class: "picture missing" }, picture.problem);
  // The name stands beside it; what it shows, nobody knows yet.
  const image = element("img", { src: picture.copy, alt: "", decoding: "async" });
  return element(
    large && picture.link ? "a" : "div",
    {
      class: "picture",
      href: large ? picture.link : null,
      target: large && picture.link ? "_blank" : null,
      rel: large && picture.link ? "noopener" : null,
      "aria-label": large && picture.link ? "Open the file" : null,
    },
    image,
  );
}

const badge = (action) => element("span", { class: `badge ${action}` }, `${SIGN[action]} ${action}`);

const cards = PICTURES.map((picture, i) => {
  const card = element(
    "li",
    { class: "card", role: "option", id: `picture-${i}`, tabindex: "-1", "aria-selected": "false" },
    pictureOf(picture, false),
    element("div", { class: "line" }),
    element("p", { class: "top" }),
    element("p", { class: "name", title: picture.name }, element("bdi", {}, picture.name)),
  );
  card.addEventListener("click", () => choose(i));
  card.addEventListener("focus", () => {
    if (chosen !== i) choose(i);
  });
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
  const picture = PICTURES[i],
    card = cards[i],
    decision = kept.decisions[i];
  const after = outcome(picture, kept.thresholds),
    changed = isMoved() && isChanged(picture);
  const top = picture.findings[0];
  const mark =
    decision === undefined
      ? null
      : isRight(i) || !picture.findings.length
        ? element("span", { class: "mark right" }, "✓ right")
        : element("span", { class: "mark wrong" }, decision.length ? `✎ ${names(decision)}` : "✗ wrong");
  card
    .querySelector(".line")
    .replaceChildren(badge(picture.action), ...(changed ? ["→", badge(after)] : []), ...(mark ? [mark] : []));
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
