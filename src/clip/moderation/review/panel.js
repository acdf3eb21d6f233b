// All that is known of the chosen picture.

const key = (name) => element("kbd", {}, name);
const button = (text, shortcut, onclick, pressed) =>
  element(
    "button",
    {
      type: "button",
      onclick,
      "aria-keyshortcuts": shortcut || null,
      "aria-pressed": pressed === undefined ? null : String(pressed),
    },
    text,
    ...(shortcut ? [" ", key(shortcut === "Space" ? "␣" : shortcut)] : []),
  );

function panel() {
  const box = by("panel");
  const focused = [...box.querySelectorAll("button")].indexOf(document.activeElement);
  if (chosen < 0) return box.replaceChildren(element("p", { class: "muted" }, "No pictures."));
  const i = chosen,
    picture = PICTURES[i],
    decision = kept.decisions[i],
    after = outcome(picture, kept.thresholds);
  const nowFound = decision ?? foundIn(picture);
  const state = decision === undefined ? "muted" : isRight(i) || !picture.findings.length ? "right" : "wrong";
  const fold = button(box.classList.contains("open") ? "Less" : "More", "", () => {
    box.classList.toggle("open");
    panel();
  });
  fold.id = "fold";
  fold.setAttribute("aria-expanded", String(box.classList.contains("open")));
  paintVeil(box, i);
  box.replaceChildren(
    ...[
      pictureOf(picture, true),
      element("h2", {}, element("bdi", {}, picture.name)),
      element(
        "p",
        {},
        badge(picture.action),
        ...(after !== picture.action && isMoved() ? [" → ", badge(after)] : []),
        " ",
        element("span", { class: state }, decisionText(i)),
      ),
      element(
        "div",
        { class: "buttons" },
        ...[
          button("Right", "a", () => accept(i), decision !== undefined && isRight(i)),
          button("Wrong", "r", () => reject(i), decision !== undefined && !isRight(i)),
          button("Undo", "u", undo),
          picture.copy ? button((veil[i] ?? isVeiled(i)) ? "Show" : "Blur", "Space", () => unveil(i)) : null,
          fold,
        ].filter(Boolean),
      ),
      picture.findings.length === 0
        ? null
        : element(
            "div",
            { class: "buttons", role: "group", "aria-label": "Shows" },
            ...CATEGORIES.map((category, c) =>
              button(category.name, c < 9 ? String(c + 1) : "", () => toggle(i, c), nowFound.includes(c)),
            ),
          ),
      element("div", { class: "more" }, ...details(picture)),
    ].filter(Boolean),
  );
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
      return element(
        "div",
        { class: `finding${finding.is_hit ? " hit" : ""}` },
        element(
          "div",
          { class: "head" },
          element("b", {}, CATEGORIES[finding.category].name),
          finding.is_hit ? badge(finding.action) : null,
          finding.is_hit ? element("span", { class: "muted" }, `severity ${finding.severity}`) : null,
          element("b", {}, digits(finding.score)),
        ),
        scale,
        element("p", {}, `“${finding.prompt}” `, element("span", { class: "muted" }, `in ${finding.view}`)),
        element(
          "p",
          { class: "muted" },
          `threshold ${digits(finding.threshold)} (${finding.threshold_origin}), ` +
            `margin ${above < 0 ? "−" : "+"}${digits(Math.abs(above))}`,
        ),
        finding.exemption === null ? null : element("p", {}, `Exempt: ${finding.exemption}`),
        finding.reservation === null ? null : element("p", {}, `Milder: ${finding.reservation}`),
      );
    }),
    element(
      "div",
      { class: "finding prints" },
      element("p", {}, plural(picture.frames, "frame", "frames"), " in the file"),
      picture.sha256 === null ? null : element("p", {}, "file ", element("code", {}, picture.sha256)),
      element("p", {}, "policy ", element("code", {}, DATA.policy.fingerprint)),
      element("p", {}, "model ", element("code", {}, DATA.model)),
    ),
  ].filter(Boolean);
}

function unveil(i) {
  veil[i] = !(veil[i] ?? isVeiled(i));
  paint(i);
  panel();
  say(veil[i] ? "Blurred." : "Shown.");
}
