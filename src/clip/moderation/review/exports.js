// What is taken away: labels as CSV, thresholds as YAML.

const field = (text) => (/[",\r\n]|^\s|\s$/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);

function labels() {
  const rows = ["path,category,label"];
  for (const i of Object.keys(kept.decisions)
    .map(Number)
    .sort((a, b) => a - b)) {
    const picture = PICTURES[i];
    if (!picture || !picture.findings.length) continue; // of what cannot be read, nothing can be learnt
    CATEGORIES.forEach((category, c) =>
      rows.push(`${field(picture.path)},${category.name},${kept.decisions[i].includes(c) ? "yes" : "no"}`),
    );
  }
  return rows.join("\n") + "\n";
}

function thresholdsText() {
  const moved = CATEGORIES.map((category, c) => [category, c]).filter(([, c]) => kept.thresholds[c] !== stated[c]);
  return (
    [
      "# Changed on the review page. In the policy each takes the place of its category's threshold or target.",
      `# policy ${DATA.policy.fingerprint}`,
      `# model ${DATA.model}`,
      "categories:",
      ...moved.flatMap(([category, c]) => [
        `  ${category.name}:`,
        `    threshold: ${kept.thresholds[c]}  # was ${digits(stated[c])}, ${category.origin}`,
      ]),
    ].join("\n") + "\n"
  );
}

// A name that is not UTF-8 came with each such byte as U+DC80 to U+DCFF, as Python has it; here they are bytes again.
function bytes(text) {
  const encoder = new TextEncoder(),
    parts = [];
  for (const part of text.split(/([\uDC80-\uDCFF])/u))
    parts.push(/^[\uDC80-\uDCFF]$/u.test(part) ? Uint8Array.of(part.charCodeAt(0) - 0xdc00) : encoder.encode(part));
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
  const text = labels(),
    rows = text.split("\n").length - 2,
    odd = PICTURES.filter((picture, i) => i in kept.decisions && /[\uDC80-\uDCFF]/u.test(picture.path)).length;
  const warning = odd
    ? ` ${plural(odd, "path is", "paths are")} not UTF-8: the file has them byte by byte, a copy of the text has not.`
    : "";
  const reviewed = Object.keys(kept.decisions).length;
  take(
    "Labels",
    `${plural(rows, "label", "labels")} of ${plural(reviewed, "picture", "pictures")}, ` +
      `for clip moderate --fit.${warning}`,
    text,
    "labels.csv",
    "text/csv",
  );
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
