// What follows from scores and thresholds; clip.moderation.review_page.outcome says the same in Python.

const margin = (picture, thresholds) =>
  Math.max(-Infinity, ...picture.findings.map((finding) => finding.score - thresholds[finding.category]));

function outcome(picture, thresholds) {
  if (!picture.findings.length) return picture.action;
  let found = 0;
  for (const finding of picture.findings)
    if (finding.score >= thresholds[finding.category]) found = Math.max(found, ACTIONS.indexOf(finding.action_if_hit));
  return ACTIONS[found];
}

const isMoved = () => kept.thresholds.some((threshold, i) => threshold !== stated[i]);
const isChanged = (picture) => outcome(picture, kept.thresholds) !== outcome(picture, stated);
const foundIn = (picture) =>
  picture.findings
    .filter((finding) => finding.is_hit)
    .map((finding) => finding.category)
    .sort((a, b) => a - b);
const same = (left, right) => left.length === right.length && left.every((value, i) => value === right[i]);
const names = (categories) => categories.map((i) => CATEGORIES[i].name).join(", ");
const isRight = (i) => same(kept.decisions[i], foundIn(PICTURES[i]));
