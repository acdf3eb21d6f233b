"""Reports as one HTML file: no script, no request to anywhere, readable on a phone and in the dark.

    rows = [{"picture": thumbnail(image), "caption": caption} for image, caption in pairs]
    html = page("My report", "<table>{% for row in rows %}…{% endfor %}</table>", rows=rows, plot=figure_svg(figure))
    write_atomically("report.html", html)

Whatever a template shows is escaped: captions and file names come from strangers. Only what this module made itself
(``thumbnail``, ``figure_svg``) is taken as it is. Should an escape ever fail, the page's own policy still forbids
scripts, forms, frames and every request.

A template uses plain tags and these classes and macros:

    <div class="grid"> {{ picture(uri, caption) }} … </div>     pictures side by side
    <div class="wide"> <table> … </table> </div>                a table that scrolls by itself on a phone
    <td class="number">                                         to the right, digits of equal width
    {{ bar(share) }}                                            a bar of 0…1 of its cell's width
    {{ bars(counts) }}                                          a table of names, counts and bars, from pairs
    <p class="good">, "bad", "muted"                            colours that hold in both modes
    {{ share|percent }}, {{ count|thousands }}                  "12.3 %", "12 345"
    <figure class="plot">{{ svg }}</figure>                     what ``figure_svg`` gives

A page that people work with, rather than read, is made by ``page_with_script``: one script of ours may run in it.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import io
import json
import math
import os
import re
import secrets
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from clip.errors import ClipError, ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure_svg", "new_figure", "page", "page_with_script", "readable", "thumbnail", "write_atomically"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_SCRIPT_POLICY = "; script-src 'sha256-{digest}'; require-trusted-types-for 'script'; trusted-types 'none'"

_STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --back: #ffffff; --soft: #f2f3f5; --line: #d9dce1; --faint: #5f6670;
  --accent: #2563c9; --good: #18794e; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e7ea; --back: #16181b; --soft: #22252a; --line: #383d45;
  --faint: #a0a7b1; --accent: #6ea2f7; --good: #5cc894; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem clamp(0.8rem, 4vw, 2rem) 4rem; max-width: 72rem; background: var(--back);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; -webkit-text-size-adjust: 100%; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 0.6rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.6rem; padding-bottom: 0.2rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 0.4rem; }
p { margin: 0.4rem 0; max-width: 46rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.4rem 0; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 0.8rem 0.25rem 0; border-bottom: 1px solid var(--line);
  min-width: 4rem; }
th { font-weight: 600; }
a { color: var(--accent); }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); gap: 0.8rem; margin: 0.6rem 0; }
figure { margin: 0; }
figcaption { font-size: 0.8rem; line-height: 1.35; color: var(--faint); margin-top: 0.25rem; }
figure img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--soft);
  border: 1px solid var(--line); border-radius: 0.4rem; }
.bar { display: block; min-width: 8rem; height: 0.7rem; margin-top: 0.4rem; background: var(--soft);
  border-radius: 0.2rem; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--accent); }
.bars { width: 100%; } .bars td:first-child, .bars .number { white-space: nowrap; } .bars td:last-child { width: 100%; }
.plot { overflow-x: auto; margin: 0.6rem 0; }
.plot svg { max-width: 100%; height: auto; fill: currentColor; stroke-linejoin: round; stroke-linecap: butt; }
.good { color: var(--good); } .bad { color: var(--bad); } .muted { color: var(--faint); }
code { font: 0.9em ui-monospace, monospace; background: var(--soft); padding: 0.1em 0.3em; border-radius: 0.25em; }
footer { margin-top: 3rem; font-size: 0.8rem; color: var(--faint); }
@media print { body { max-width: none; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""

_LAYOUT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
{{ body }}
</main>
{% if script %}
<footer>Made by everyclip. This page is complete in itself: it loads nothing and sends nothing.</footer>
<script type="application/json" id="data">{{ data }}</script>
<script>{{ script }}</script>
{% else %}
<footer>Made by everyclip. This page is complete in itself: it loads nothing and runs no script.</footer>
{% endif %}
</body>
</html>
"""

_MACROS = """
{%- macro picture(uri, caption="") -%}
<figure><img src="{{ uri }}" alt="{{ caption }}"><figcaption>{{ caption }}</figcaption></figure>
{%- endmacro -%}
{%- macro bar(share) -%}
<span class="bar"><i style="width:{{ '%.1f' % (100 * [0, [1, share]|min]|max) }}%"></i></span>
{%- endmacro -%}
{%- macro bars(counts) -%}
{%- set largest = (counts|map(attribute=1)|list + [1])|max -%}
<table class="bars">
{% for name, count in counts %}
<tr><td>{{ name }}</td><td class="number">{{ count|thousands }}</td><td>{{ bar(count / largest) }}</td></tr>
{% endfor %}
</table>
{%- endmacro -%}
"""


def page(title: str, template: str, **values: Any) -> str:
    """A whole page: ``template`` (Jinja) filled with ``values``, below its title and in the layout of all reports.

    Values are escaped where the template shows them. Raises jinja2.UndefinedError for a name that is not there.
    """
    return _laid_out(title, template, values)


def page_with_script(title: str, template: str, *, script: str, data: Any, values: Mapping[str, Any]) -> str:
    """A page as ``page`` makes it, in which one script runs: ``script``, our own, which the page's policy knows by its
    SHA-256. Any other, and any text that would be made into elements (``innerHTML``), the browser refuses.

    data: plain JSON from anywhere, hostile names and all. The script has it as
    ``JSON.parse(document.getElementById("data").textContent)``.
    Raises ConfigError for a script that would end its own element.
    """
    if re.search(r"</script|<!--", script, re.IGNORECASE):
        raise ConfigError("the script has </script or <!--, where its element would end; write it in two strings")
    return _laid_out(title, template, values, script=script, data=_inert_json(data))


def _inert_json(data: Any) -> Markup:
    """JSON without a character that HTML knows; those that are not ASCII, lone surrogates too, are escaped already."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(re.sub(r"[<>&]", lambda sign: f"\\u{ord(sign[0]):04x}", text))


def _laid_out(
    title: str, template: str, values: Mapping[str, Any], *, script: str = "", data: Markup | None = None
) -> str:
    environment = _environment()
    macros: dict[str, Any] = dict(vars(environment.from_string(_MACROS).module))
    values = {**{name: macros[name] for name in ("picture", "bar", "bars")}, **values}
    body = Markup(environment.from_string(template).render(values))  # rendered with escapes
    layout = environment.from_string(_LAYOUT)
    policy = _POLICY
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += _SCRIPT_POLICY.format(digest=digest)
    html = layout.render(
        title=title, body=body, style=Markup(_STYLE), policy=Markup(policy), script=Markup(script), data=data
    )
    # A file name that is not UTF-8 has lone surrogates, which no file in UTF-8 can hold.
    return html.encode("utf-8", errors="replace").decode("utf-8")


def readable(text: str) -> str:
    """A file name or other text for people: bytes not UTF-8 as ``\\xff``, control characters by their codes."""
    shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = _percent
    environment.filters["thousands"] = lambda count: f"{count:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return environment


def _percent(share: float) -> str:
    if math.isnan(share):
        return "–"
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def thumbnail(image: Image.Image | NDArray[np.uint8], side: int = 96) -> Markup:
    """The picture within ``side`` × ``side`` pixels as a ``data:`` address, for ``src`` of an image.

    image: a PIL image, or pixels (H, W, 3). A smaller picture keeps its size.
    """
    small = (Image.fromarray(image) if isinstance(image, np.ndarray) else image).convert("RGB")
    small.thumbnail(
        (side, side), Image.Resampling.BOX, reducing_gap=2.0
    )  # convert gave a copy, so nothing else changes
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return Markup("data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii"))


def new_figure(width: float = 7.0, height: float = 4.0) -> Figure:
    """An empty matplotlib figure of so many inches, without a window behind it; MissingDependencyError names the extra.

    Labels that come from data need ``parse_math=False``, or a name such as ``$_`` is a formula, and an error.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("plots need matplotlib; run pip install 'everyclip[plots]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def figure_svg(figure: Figure) -> Markup:
    """A matplotlib figure as SVG to stand in a page. What is black takes the colour of the page's text. Closes it."""
    import matplotlib as mpl

    file = io.StringIO()
    # Letters stay text, to be found and to be small; ids depend on the contents alone, so that pages can be compared.
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "everyclip"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the browser's fonts will have it
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(figure)
    figure.clear()
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]  # without what makes it a file of its own
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg, count=2)
    svg = re.sub(r"<style\b[^>]*>[^<]*</style>", "", svg, count=1)  # it is about every element of the page
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in each figure, and nothing refers to them
    return Markup(svg.replace("#000000", "currentColor"))  # matplotlib escapes its texts


def write_atomically(path: str | os.PathLike[str], contents: str | bytes) -> None:
    """Writes a file (text as UTF-8) that has its name only once it is whole; one of that name is replaced.

    Raises ClipError where that cannot be: no such folder, no permission, no room.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    data = contents.encode("utf-8") if isinstance(contents, str) else contents
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        raise ClipError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
