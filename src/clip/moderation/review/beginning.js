// Listeners, and the first look.

by("category").append(
  element("option", { value: "-1" }, "all"),
  ...CATEGORIES.map((category, c) => element("option", { value: c }, category.name)),
);
const filters = ["category", "action", "state", "from", "to", "sort"];
for (const id of filters) by(id).addEventListener("change", list);
by("clear").addEventListener("click", () => {
  for (const [id, value] of [
    ["category", "-1"],
    ["action", "all"],
    ["state", "all"],
    ["from", "0"],
    ["to", "1"],
  ])
    by(id).value = value;
  list();
});
by("show-changed").addEventListener("click", () => {
  by("action").value = "changed";
  list();
});
by("reset-all").addEventListener("click", () => {
  kept.thresholds = [...stated];
  save();
  thresholdsMoved();
});
by("export-labels").addEventListener("click", takeLabels);
by("export-thresholds").addEventListener("click", () =>
  take("Thresholds", "Put these in place of those in your policy.", thresholdsText(), "thresholds.yaml", "text/yaml"),
);
by("help-button").addEventListener("click", () => by("help").showModal());
by("keys-on").addEventListener("change", () => {
  kept.keys = by("keys-on").checked;
  save();
});
by("blur").addEventListener("change", () => {
  kept.blur = by("blur").value;
  for (const i of Object.keys(veil)) delete veil[i];
  save();
  thresholdsMoved();
});

function begin() {
  load();
  by("blur").value = kept.blur;
  by("keys-on").checked = kept.keys;
  PICTURES.forEach((_, i) => paint(i));
  progress();
  counts();
  list();
}

addEventListener("storage", (event) => {
  if (event.key === KEY) begin();
}); // decided in another tab
by("about").textContent =
  `${plural(DATA.total, "picture", "pictures")} held against the policy ${DATA.policy.name}. ` +
  "Nothing here changes a file.";
if (matchMedia("(max-width: 60rem)").matches) by("filters").open = false;
by("review").hidden = false;
begin();
