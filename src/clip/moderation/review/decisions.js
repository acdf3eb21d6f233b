// What a person says of a picture: the categories that it belongs to. Each can be undone.

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
  say(`${PICTURES[i].name}: ${decisionText(i)}.`);
  if (advance) {
    const place = order.indexOf(i);
    const next = order.slice(place + 1).find((other) => !(other in kept.decisions)) ?? order[place + 1];
    if (next !== undefined) return choose(next);
  }
  panel();
}

function accept(i) {
  decide(i, foundIn(PICTURES[i]), true);
}

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
  decide(
    i,
    decision.sort((a, b) => a - b),
    false,
  );
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
