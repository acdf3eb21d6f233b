"""A report of the doctor for people: a few lines of text, or a page with pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from clip.data.findings import Finding, Histogram, Report
from clip.data.likeness import image_bytes
from clip.data.records import Source
from clip.errors import ClipError
from clip.html_page import page, thumbnail
from clip.images import read_pixels

__all__ = ["report_lines", "report_page"]

_SIDE = 144
"""Pixels of the pictures of a page; they are shown at about two thirds of it, for sharp screens."""
_SHOWN_CLASSES = 40


def report_lines(report: Report) -> list[str]:
    """The report in a few lines; findings come last, the largest share first."""
    lines = [
        f"{report.source}: {report.records:,} records, {report.pairs:,} usable pairs, {report.captions:,} captions",
        f"  pictures  {_counts(report.formats)}; shorter side {_spread(report.sides)} px, "
        f"aspect {_spread(report.aspects)}; {report.grey_pictures:,} without colour",
        f"  captions  {_spread(report.tokens)} tokens of at most {report.context_length}; "
        f"script {_counts(report.scripts)}; {_percent(report.ascii_captions, report.captions)} plain ASCII",
    ]
    if report.classes:
        counts = sorted(report.classes.values())
        lines.append(
            f"  classes   {len(counts):,}, with {counts[0]:,} … {counts[len(counts) // 2]:,} … {counts[-1]:,} records"
        )
    lines.append(
        f"  batches   {report.batches_per_epoch:,} an epoch at {report.batch_size:,}, the last of "
        f"{report.last_batch:,}; in one batch {report.equal_captions_per_batch:.2g} pairs with equal captions expected"
    )
    lines.extend(f"  compared  with {name}" for name in report.against)
    found = [finding for finding in report.findings if finding.count]
    if not found:
        lines.append(f"nothing found by {len(report.findings)} checks")
    for finding in sorted(found, key=lambda finding: -finding.share):
        lines.append(f"{_percent(finding.count, finding.of):>7}  {finding.about}: {finding.count:,} of {finding.of:,}")
        example = finding.examples[0]
        keys = ", ".join(place.key for place in example.places if place.key)
        lines.append(f"         e.g. {keys + ': ' if keys else ''}{_cut(example.text, 100)}")
        lines.append(f"         → {finding.remedy}")
    return lines


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:5]) or "none"


def _spread(histogram: Histogram) -> str:
    return f"{histogram.minimum:g} … {histogram.median:g} … {histogram.maximum:g}"


def _percent(count: int, of: int) -> str:
    share = 100 * count / of if of else 0.0
    return f"{share:.1f} %" if share >= 0.05 or not share else "< 0.1 %"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def report_page(report: Report, source: Source, *, against: Iterable[Source] = (), samples: int = 24) -> str:
    """The report as an HTML page, with pictures of each finding and of ``samples`` records drawn at random.

    source, against: those that were examined; their pictures are read again.
    """
    sources = {each.name: each for each in (*against, source)}
    findings = sorted((f for f in report.findings if f.count), key=lambda finding: -finding.share)
    drawn = np.sort(np.random.default_rng(0).permutation(len(source))[:samples]).tolist()
    classes = sorted(report.classes.items(), key=lambda item: (-item[1], item[0]))
    return page(
        f"Data check of {report.source}",
        _TEMPLATE,
        report=report,
        findings=[(finding, _shown(finding, sources)) for finding in findings],
        clean=[finding for finding in report.findings if not finding.count],
        drawn=[_picture(source, index) for index in drawn],
        histograms=[
            ("Shorter side of the pictures, pixels", report.sides),
            ("Longer side by shorter side", report.aspects),
            ("Tokens of a caption, with start and end", report.tokens),
        ],
        classes=classes[:_SHOWN_CLASSES],
        more_classes=max(0, len(classes) - _SHOWN_CLASSES),
    )


def _shown(finding: Finding, sources: Mapping[str, Source]) -> list[dict[str, Any]]:
    """Examples with their pictures."""
    return [
        {
            "text": example.text,
            "pictures": [
                {**_picture(sources[place.source], place.index), "key": place.key or f"record {place.index}"}
                for place in example.places
            ],
        }
        for example in finding.examples
    ]


def _picture(source: Source, index: int) -> dict[str, Any]:
    """What a template shows of one record, also of one that cannot be read."""
    try:
        sample = source[index]
    except ClipError:
        return {"key": f"record {index}", "uri": None, "caption": ""}
    caption = _cut(sample.captions[0] if sample.captions else "", 120)
    uri: Markup | None = None
    with contextlib.suppress(ClipError):
        uri = thumbnail(read_pixels(image_bytes(sample.image), shorter_side=_SIDE), side=_SIDE)
    return {"key": sample.key, "uri": uri, "caption": caption}


_TEMPLATE = """
{% macro shown(one) %}
<figure>
{% if one.uri %}<img src="{{ one.uri }}" alt="{{ one.caption }}">
{% else %}<div class="missing">no picture</div>{% endif %}
<figcaption><b>{{ one.key }}</b><br>{{ one.caption }}</figcaption>
</figure>
{% endmacro %}
<style>
.missing { aspect-ratio: 1; display: grid; place-items: center; background: var(--soft); color: var(--faint);
  border-radius: 0.4rem; font-size: 0.8rem; }
.groups { display: flex; flex-wrap: wrap; gap: 0.4rem 2rem; }
.few { display: flex; flex-wrap: wrap; gap: 0.8rem; }
.few figure { width: 8rem; }
figcaption b { font-size: 0.75rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 0 2.5rem; }
.cards table { width: 100%; }
</style>
<p>{{ report.records|thousands }} records, {{ report.pairs|thousands }} usable pairs,
{{ report.captions|thousands }} captions.
{{ report.batches_per_epoch|thousands }} batches an epoch at {{ report.batch_size|thousands }}, the last of
{{ report.last_batch|thousands }}; in one batch {{ "%.2g"|format(report.equal_captions_per_batch) }} pairs with equal
captions are expected.
{% for name in report.against %}Compared with <code>{{ name }}</code>. {% endfor %}</p>

<h2>Findings</h2>
{% if findings %}
<div class="wide"><table>
<tr><th class="number">share</th><th class="number">count</th><th>what</th><th>what to do</th></tr>
{% for finding, examples in findings %}
<tr><td class="number bad">{{ finding.share|percent }}</td><td class="number">{{ finding.count|thousands }}</td>
<td><a href="#{{ finding.name }}">{{ finding.about }}</a></td><td>{{ finding.remedy }}</td></tr>
{% endfor %}
</table></div>
{% else %}<p class="good">Nothing was found.</p>{% endif %}
{% if clean %}<p class="muted">Looked for and not found:
{% for finding in clean %}{{ finding.about }}{{ "; " if not loop.last else "." }}{% endfor %}</p>{% endif %}
{% for finding, examples in findings %}
<h2 id="{{ finding.name }}">{{ finding.about[0]|upper }}{{ finding.about[1:] }}</h2>
<p class="muted">{{ finding.count|thousands }} of {{ finding.of|thousands }}; {{ finding.remedy }}</p>
{% if examples and examples[0].pictures|length == 1 %}
<div class="grid">{% for example in examples %}
{{ shown({"key": example.pictures[0].key, "uri": example.pictures[0].uri, "caption": example.text}) }}
{% endfor %}</div>
{% else %}<div class="groups">{% for example in examples %}
<div><h3>{{ example.text }}</h3>
<div class="few">{% for one in example.pictures %}{{ shown(one) }}{% endfor %}</div></div>
{% endfor %}</div>{% endif %}
{% endfor %}

<h2>What is there</h2>
<div class="cards">
{% for name, histogram in histograms %}
<div><h3>{{ name }}</h3><p class="muted">{{ "%g"|format(histogram.minimum) }} … median
{{ "%g"|format(histogram.median) }} … {{ "%g"|format(histogram.maximum) }}</p>
{{ bars(histogram.ranges.items()) }}</div>
{% endfor %}
<div><h3>Captions by script</h3><p class="muted">the Unicode script of most letters, not the language;
{{ (report.ascii_captions / ([report.captions, 1]|max))|percent }} are plain ASCII</p>
{{ bars(report.scripts.items()) }}</div>
<div><h3>Formats</h3><p class="muted">{{ report.grey_pictures|thousands }} pictures without colour</p>
{{ bars(report.formats.items()) }}</div>
{% if classes %}<div><h3>Records of each class</h3>{{ bars(classes) }}
{% if more_classes %}<p class="muted">and {{ more_classes|thousands }} smaller ones</p>{% endif %}</div>{% endif %}
</div>

<h2>Some records, drawn at random</h2>
<div class="grid">{% for one in drawn %}{{ shown(one) }}{% endfor %}</div>
"""
