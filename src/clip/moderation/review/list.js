// Which pictures are listed, in which order, and which of them is chosen.

function scoreOf(picture, category) {
  const scores = picture.findings
    .filter((finding) => category < 0 || finding.category === category)
    .map((finding) => finding.score);
  return scores.length ? Math.max(...scores) : null;
}

function list() {
  const category = Number(by("category").value),
    action = by("action").value,
    state = by("state").value;
  const from = Number(by("from").value || 0),
    to = Number(by("to").value || 1),
    sort = by("sort").value;
  const isShown = (picture, i) => {
    const score = scoreOf(picture, category),
      decision = kept.decisions[i];
    if (score === null ? from > 0 || to < 1 || category >= 0 : score < from || score > to) return false;
    if (
      category >= 0 &&
      action !== "all" &&
      ["found", "block", "flag"].includes(action) &&
      !foundIn(picture).includes(category)
    )
      return false;
    if (action === "found" ? picture.action === "allow" : ACTIONS.includes(action) && picture.action !== action)
      return false;
    if (action === "unreadable" && picture.findings.length) return false;
    if (action === "noted" && !picture.notes.length) return false;
    if (action === "changed" && !isChanged(picture)) return false;
    if (state === "no" && decision !== undefined) return false;
    if (state === "yes" && decision === undefined) return false;
    return state !== "wrong" || (decision !== undefined && picture.findings.length > 0 && !isRight(i));
  };
  const marginOf = (picture) =>
    picture.findings.length === 0
      ? Infinity
      : category < 0
        ? margin(picture, stated)
        : scoreOf(picture, category) - stated[category];
  const nearness = (picture) =>
    Math.min(
      Infinity,
      ...picture.findings
        .filter((finding) => category < 0 || finding.category === category)
        .map((finding) => Math.abs(finding.score - kept.thresholds[finding.category])),
    );
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
  by("listed").textContent =
    order.length === PICTURES.length ? "" : `${order.length} of ${PICTURES.length} pictures are listed.`;
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
