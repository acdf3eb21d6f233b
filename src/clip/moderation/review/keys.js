// What keys do.

const isTyping = (target) => target instanceof Element && target.closest("input, select, textarea, dialog") !== null;

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape" && chosen >= 0) return choose(chosen);
  if (isTyping(event.target)) return;
  const inControl = event.target instanceof Element && event.target.closest("button, a, summary") !== null;
  const inList = event.target === document.body || by("pictures").contains(event.target);
  const everywhere = { "?": () => by("help").showModal() };
  const arrows = {
    ArrowRight: () => move(1),
    ArrowLeft: () => move(-1),
    ArrowDown: () => move(columns()),
    ArrowUp: () => move(-columns()),
    Home: () => move(-order.length),
    End: () => move(order.length),
  };
  const single = {
    j: () => move(1),
    k: () => move(-1),
    a: () => accept(chosen),
    r: () => reject(chosen),
    u: undo,
    x: () => forget(chosen),
  };
  let what = everywhere[event.key] ?? (inList ? arrows[event.key] : undefined);
  if (kept.keys && chosen >= 0) {
    what ??= single[event.key];
    if (event.key === " " && !inControl) what = () => unveil(chosen);
    if (/^[1-9]$/.test(event.key) && Number(event.key) <= CATEGORIES.length)
      what = () => toggle(chosen, Number(event.key) - 1);
  }
  if (!what || (event.repeat && /^[aru]$/.test(event.key))) return;
  event.preventDefault();
  what();
});
