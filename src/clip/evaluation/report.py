"""An evaluation as one HTML page: numbers with their intervals, plots, and the pictures behind the mistakes.

Worst first: a page that shows what went right teaches nothing. Names and captions come from strangers and are escaped
by ``html_page``; pictures are read again from the source, and one that cannot be read any more is shown as a gap.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from clip.data.records import Source
from clip.errors import ClipError
from clip.evaluation.plots import confusion_figure, few_shot_figure, most_confused, penalty_figure, reliability_figure
from clip.evaluation.probe import ProbeResult
from clip.evaluation.results import ClassificationResult, Direction, Evaluation, Measure, RetrievalResult
from clip.html_page import figure_svg, page, thumbnail, write_atomically
from clip.images import read_pixels
from clip.intervals import wilson

__all__ = ["report_page", "write"]

_SIDE = 144
"""Pixels of a picture; it is shown smaller, for sharp screens."""
_WORST_CLASSES = 8
_MISTAKES_OF_A_CLASS = 6
_SUREST_MISTAKES = 18
_ROWS_IN_SIGHT = 30
_CONFUSION_LIMIT = 24
_QUERIES_SHOWN = 6
_FAILURES_SHOWN = 50


def write(result: Evaluation, path: str | os.PathLike[str], *, source: Source | None = None) -> None:
    """Writes the page of an evaluation.

    source: the one that was evaluated, for its pictures; without it the page has none.
    Raises MissingDependencyError without matplotlib, ClipError where the file cannot be written.
    """
    write_atomically(path, report_page(result, source=source))


def report_page(result: Evaluation, *, source: Source | None = None) -> str:
    """The page as HTML. See ``write``."""
    pictures = _Pictures(source)
    classifications = []
    if result.classification is not None:
        classifications.append(_classification("Zero-shot classification", result.classification, pictures))
    if result.linear_probe is not None:
        probe = result.linear_probe
        part = _classification("Linear probe", probe.classification, pictures)
        part["note"] = (
            f"Logistic regression on {probe.train_images} image embeddings. Its penalty was the best of "
            f"{len(probe.sweep)} on {probe.validation_images} of them, which no test picture is among."
        )
        part["plots"].append(("Accuracy on the validation split, by penalty", figure_svg(penalty_figure(probe))))
        classifications.append(part)
    return page(
        f"{result.model} on {result.data}" if result.data else f"{result.model}: generated probes",
        _TEMPLATE,
        result=result,
        headline=list(_headline(result)),
        classifications=classifications,
        few_shot=_few_shot(result),
        retrieval=_retrieval(result.retrieval, pictures) if result.retrieval is not None else None,
        probe=_probe(result.probe) if isinstance(result.probe, ProbeResult) else None,
        failures=result.failures[:_FAILURES_SHOWN],
    )


def _headline(result: Evaluation) -> Iterator[Measure]:
    """The few numbers that a reader wants first."""
    if result.classification is not None:
        yield from result.classification.measures[:3]
    if result.retrieval is not None:
        for way, direction in _directions(result.retrieval):
            for measure in direction.measures:
                if measure.name in ("recall@1", "recall@10"):
                    yield dataclasses.replace(measure, title=f"{way}, {measure.title}")
    if result.linear_probe is not None:
        top1 = result.linear_probe.classification.measures[0]
        yield dataclasses.replace(top1, title=f"linear probe, {top1.title}")


class _Pictures:
    """Thumbnails of records, each read at most once."""

    def __init__(self, source: Source | None) -> None:
        self._source = source
        self._known: dict[int, tuple[Markup | None, tuple[str, ...]]] = {}

    def uri(self, row: int) -> Markup | None:
        return self._read(row)[0]

    def _read(self, row: int) -> tuple[Markup | None, tuple[str, ...]]:
        if row not in self._known:
            found: tuple[Markup | None, tuple[str, ...]] = None, ()
            if self._source is not None:
                with contextlib.suppress(ClipError):  # it could be read for the evaluation; a gap says that it is gone
                    sample = self._source[row]
                    found = thumbnail(read_pixels(sample.image, shorter_side=_SIDE), side=_SIDE), sample.captions
            self._known[row] = found
        return self._known[row]


# Classification -------------------------------------------------------------------------------------------------------


def _classification(title: str, result: ClassificationResult, pictures: _Pictures) -> dict[str, Any]:
    names = result.predictions.class_names
    shown = most_confused(result.confusion, _CONFUSION_LIMIT)
    more = "" if len(shown) == len(names) else f" the {len(shown)} of {len(names)} classes that are confused most;"
    plots = [
        (
            f"Confusion:{more} in a row, what pictures of one class were taken for",
            figure_svg(confusion_figure(result.confusion, names, limit=_CONFUSION_LIMIT)),
        )
    ]
    calibration = result.calibration
    if calibration is not None:
        plots.append(("How often it is right when it is so sure", figure_svg(reliability_figure(calibration))))
    classes = _classes(result)
    return {
        "title": title,
        "note": "",
        "result": result,
        "plots": plots,
        "prompts": sorted(result.prompts.templates, key=lambda score: -score.top1.value) if result.prompts else [],
        "classes": classes[:_ROWS_IN_SIGHT],
        "more_classes": classes[_ROWS_IN_SIGHT:],
        "worst": list(_worst(result, pictures)),
        "surest": list(_surest(result, pictures)),
        "confusions": _confusions(result)[:_ROWS_IN_SIGHT],
    }


def _classes(result: ClassificationResult) -> list[dict[str, Any]]:
    """A row for each class that has pictures, the worst first."""
    names, rows = result.predictions.class_names, []
    for i, count in enumerate(result.class_support.tolist()):
        if count:
            recall = float(result.class_recall[i])
            low, high = wilson(recall, count)
            taken_for, times = result.most_taken_for(i)
            claimed = int(result.confusion[:, i].sum())
            rows.append(
                {
                    "index": i,
                    "name": names[i],
                    "count": count,
                    "recall": recall,
                    "low": low,
                    "high": high,
                    "precision": int(result.confusion[i, i]) / claimed if claimed else float("nan"),
                    "taken_for": taken_for,
                    "times": times,
                }
            )
    return sorted(rows, key=lambda row: (row["recall"], -row["count"]))


def _confusions(result: ClassificationResult) -> list[tuple[str, str, int, int]]:
    """True class, predicted class, how often, of how many; the most frequent first."""
    names, support = result.predictions.class_names, result.class_support.tolist()
    wrong = result.confusion - result.confusion.diag().diag()
    pairs = [(int(wrong[i, j]), i, j) for i, j in wrong.nonzero().tolist()]
    return [(names[i], names[j], n, support[i]) for n, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))]


def _worst(result: ClassificationResult, pictures: _Pictures) -> Iterator[dict[str, Any]]:
    """The classes that are found least, each with its surest mistakes."""
    wrong = _mistakes(result)
    for row in _classes(result)[:_WORST_CLASSES]:
        of_class = [i for i in wrong if int(result.predictions.labels[i]) == row["index"]]
        if of_class:
            yield {**row, "mistakes": [_mistake(result, i, pictures) for i in of_class[:_MISTAKES_OF_A_CLASS]]}


def _surest(result: ClassificationResult, pictures: _Pictures) -> Iterator[dict[str, Any]]:
    """Mistakes of any class that the model was surest of."""
    for i in _mistakes(result)[:_SUREST_MISTAKES]:
        yield _mistake(result, i, pictures)


def _mistakes(result: ClassificationResult) -> list[int]:
    """Places of what was taken for something else, the surest first."""
    predictions = result.predictions
    sureness = predictions.probabilities.amax(dim=1)
    wrong = (predictions.predicted != predictions.labels).nonzero().flatten()
    order = sureness[wrong].sort(descending=True, stable=True).indices
    return wrong[order].tolist()


def _mistake(result: ClassificationResult, i: int, pictures: _Pictures) -> dict[str, Any]:
    predictions = result.predictions
    label, taken = int(predictions.labels[i]), int(predictions.predicted[i])
    shares = predictions.probabilities[i]
    return {
        "uri": pictures.uri(int(predictions.rows[i])),
        "key": predictions.keys[i],
        "label": predictions.class_names[label],
        "taken_for": predictions.class_names[taken],
        "share": float(shares[taken]),
        "own_share": float(shares[label]),
    }


# The other parts ------------------------------------------------------------------------------------------------------


def _few_shot(result: Evaluation) -> dict[str, Any] | None:
    if result.few_shot is None or not result.few_shot.points:
        return None
    return {"result": result.few_shot, "plot": figure_svg(few_shot_figure(result.few_shot))}


def _directions(result: RetrievalResult) -> tuple[tuple[str, Direction], tuple[str, Direction]]:
    return ("image to text", result.image_to_text), ("text to image", result.text_to_image)


def _retrieval(result: RetrievalResult, pictures: _Pictures) -> dict[str, Any]:
    belongs = {(image, caption) for image, caption in result.pairs.tolist()}
    own_captions: dict[int, list[str]] = {}
    for image, caption in result.pairs.tolist():
        own_captions.setdefault(image, []).append(result.captions[caption])

    def by_text(query: int) -> dict[str, Any]:
        found = result.text_to_image.best[query].tolist()
        return {
            "query": result.captions[query],
            "rank": float(result.text_to_image.ranks[query]),
            "found": [
                {
                    "uri": pictures.uri(int(result.rows[image])),
                    "key": result.keys[image],
                    "is_right": (image, query) in belongs,
                }
                for image in found[:6]
            ],
        }

    def by_image(query: int) -> dict[str, Any]:
        found = result.image_to_text.best[query].tolist()
        return {
            "uri": pictures.uri(int(result.rows[query])),
            "key": result.keys[query],
            "own": own_captions.get(query, [""])[0],
            "rank": float(result.image_to_text.ranks[query]),
            "found": [
                {"text": result.captions[caption], "is_right": (query, caption) in belongs} for caption in found[:4]
            ],
        }

    return {
        "result": result,
        "directions": _directions(result),
        "text_misses": [by_text(i) for i in _spread(_ranked(result.text_to_image, is_hit=False))],
        "text_hits": [by_text(i) for i in _spread(_ranked(result.text_to_image, is_hit=True))],
        "image_misses": [by_image(i) for i in _spread(_ranked(result.image_to_text, is_hit=False))],
        "image_hits": [by_image(i) for i in _spread(_ranked(result.image_to_text, is_hit=True))],
    }


def _ranked(direction: Direction, *, is_hit: bool) -> list[int]:
    """Queries whose own candidate comes first, or does not, in their order."""
    first: Tensor = direction.ranks < 1.5
    return torch.nonzero(first == is_hit).flatten().tolist()


def _spread(items: Sequence[int]) -> Iterable[int]:
    """A few, evenly spaced: not the best ones, not the worst."""
    if len(items) <= _QUERIES_SHOWN:
        return items
    return [items[i * len(items) // _QUERIES_SHOWN] for i in range(_QUERIES_SHOWN)]


def _probe(result: ProbeResult) -> dict[str, Any]:
    return {
        "result": result,
        "kinds": [
            {
                "kind": kind,
                "examples": [
                    {"uri": thumbnail(example.picture, side=_SIDE), "example": example} for example in kind.examples
                ],
            }
            for kind in result.kinds
        ],
    }


_TEMPLATE = """
{% macro number(value, measure) %}{{ value|percent if measure.is_share else "%.3g"|format(value) }}{% endmacro %}
{% macro whisker(low, value, high, chance) %}
<span class="whisker"><i style="left:{{ '%.1f' % (100 * low) }}%;width:{{ '%.1f' % (100 * (high - low)) }}%"></i>
<b style="left:{{ '%.1f' % (100 * value) }}%"></b>
{% if chance is not none %}<u style="left:{{ '%.1f' % (100 * chance) }}%"></u>{% endif %}</span>
{% endmacro %}
{% macro measures(rows) %}
<div class="wide"><table>
<tr><th></th><th class="number">value</th><th class="number">95 % interval</th><th class="drawn"></th>
<th class="number">chance</th><th class="number">of</th></tr>
{% for m in rows %}
<tr><td>{{ m.title }}</td><td class="number"><strong>{{ number(m.value, m) }}</strong></td>
<td class="number">{{ number(m.low, m) }} – {{ number(m.high, m) }}</td>
<td class="drawn">{% if m.is_share and m.low >= 0 %}{{ whisker(m.low, m.value, m.high, m.chance) }}{% endif %}</td>
<td class="number">{% if m.chance is not none %}{{ number(m.chance, m) }}{% endif %}</td>
<td class="number muted">{{ m.n|thousands }} {{ m.of }}</td></tr>
{% endfor %}</table></div>
{% endmacro %}
{% macro seen(uri, alt) %}
{% if uri %}<img src="{{ uri }}" alt="{{ alt }}">{% else %}<div class="missing">no picture</div>{% endif %}
{% endmacro %}
{% macro mistake(one, with_label) %}
<figure title="{{ one.key }}">{{ seen(one.uri, one.label) }}
<figcaption>{% if with_label %}{{ one.label }}<br>{% endif %}
<span class="bad">{{ one.taken_for }}</span> <span class="whole">{{ one.share|percent }}</span><br>
<span class="muted">itself {{ one.own_share|percent }}</span></figcaption></figure>
{% endmacro %}
{% macro class_rows(rows) %}
<div class="wide"><table>
<tr><th>class</th><th class="number">pictures</th><th class="number">found</th><th class="drawn"></th>
<th class="number">right when named</th><th>most taken for</th></tr>
{% for row in rows %}
<tr><td>{{ row.name }}</td><td class="number">{{ row.count|thousands }}</td>
<td class="number">{{ row.recall|percent }}</td>
<td class="drawn">{{ whisker(row.low, row.recall, row.high, none) }}</td>
<td class="number">{{ row.precision|percent }}</td>
<td>{% if row.times %}{{ row.taken_for }} <span class="muted">× {{ row.times }}</span>{% endif %}</td></tr>
{% endfor %}</table></div>
{% endmacro %}
<style>
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: 0.8rem; margin: 1rem 0; }
.cards div { background: var(--soft); border-radius: 0.5rem; padding: 0.7rem 0.9rem; }
.cards strong { display: block; font-size: 1.7rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.cards small { color: var(--faint); display: block; line-height: 1.4; }
.whisker { display: block; position: relative; width: 10rem; height: 0.8rem; margin-top: 0.35rem;
  background: var(--soft); border-radius: 0.2rem; }
.whisker i { position: absolute; top: 0; bottom: 0; background: var(--accent); opacity: 0.35; border-radius: 0.2rem; }
.whisker b { position: absolute; top: -0.1rem; bottom: -0.1rem; width: 0.2rem; margin-left: -0.1rem;
  background: var(--accent); }
.whisker u { position: absolute; top: 0; bottom: 0; width: 0; border-left: 1px dashed var(--text); }
.plots { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 0.5rem 2rem; }
.plots figcaption { margin: 0 0 0.3rem; font-size: 0.9rem; max-width: 30rem; }
.missing { aspect-ratio: 1; display: grid; place-items: center; background: var(--soft); color: var(--faint);
  border-radius: 0.4rem; font-size: 0.8rem; }
.query { margin: 0.9rem 0 0.2rem; }
.right img { outline: 3px solid var(--good); outline-offset: 1px; }
.pair { display: grid; grid-template-columns: 6.5rem 1fr; gap: 0.9rem; align-items: start; margin: 0.8rem 0; }
.pair img { width: 100%; border-radius: 0.4rem; display: block; }
.pair ol { margin: 0; padding-left: 1.4rem; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 0 2rem; }
.verdicts { display: grid; grid-template-columns: max-content 1fr; gap: 0.4rem 1rem; max-width: 52rem; }
.verdicts dt { font-weight: 600; } .verdicts dd { margin: 0; }
.whole { white-space: nowrap; }
details { margin: 0.5rem 0; } summary { cursor: pointer; color: var(--accent); }
.wide table { overflow-wrap: normal; }
@media (max-width: 40rem) { .verdicts { display: block; } .verdicts dt { margin-top: 0.5rem; }
  .drawn { display: none; } .wide td, .wide th { padding-right: 0.7rem; min-width: 0; } }
</style>

<p class="muted">{% if result.data %}{{ result.images|thousands }} images{% if result.train_data %}, training pictures
from {{ result.train_data }}{% endif %}.{% endif %} Each number has its 95 % interval: where it would lie for other
pictures from where these come from. It says nothing of pictures from elsewhere.
{% if result.failures %}<strong class="bad">{{ result.failures|length|thousands }}
record{{ "s" if result.failures|length != 1 }} could not be used, and the numbers are without.</strong>{% endif %}</p>
{% if headline %}
<div class="cards">
{% for m in headline %}
<div><small>{{ m.title }}</small><strong>{{ number(m.value, m) }}</strong>
<small>{{ number(m.low, m) }} – {{ number(m.high, m) }}{% if m.chance is not none %}, chance {{ number(m.chance, m) }}
{% endif %}</small></div>
{% endfor %}</div>
{% endif %}

{% if probe %}
<h2>What it cannot do</h2>
<p>{{ probe.result.count|thousands }} generated scenes of each kind (things: {{ probe.result.things }}, seed
{{ probe.result.seed }}). The wrong captions differ from the right one in just the probed fact. The control has the same
pictures and as many captions, but the wrong ones name something that is not there: who fails both does not see the
parts, and nothing follows about the fact.
{% if probe.result.omitted %}Not possible with these things: {{ probe.result.omitted|join(", ") }}.{% endif %}</p>
<dl class="verdicts">
{% for part in probe.kinds %}
<dt class="{{ 'good' if part.kind.standing in ('can', 'partly') else 'bad' }}">{{ part.kind.kind }}</dt>
<dd>{{ part.kind.verdict }}</dd>
{% endfor %}</dl>
<div class="wide"><table>
<tr><th></th><th class="number">right caption</th><th class="drawn"></th><th class="number">chance</th>
<th class="number">control</th><th class="drawn"></th><th class="number">both captions</th>
<th class="number">both scenes</th><th class="number">all four</th></tr>
{% for part in probe.kinds %}{% set k = part.kind %}
<tr><td>{{ k.kind }}</td><td class="number"><strong>{{ k.accuracy.value|percent }}</strong></td>
<td class="drawn">{{ whisker(k.accuracy.low, k.accuracy.value, k.accuracy.high, k.accuracy.chance) }}</td>
<td class="number">{{ k.accuracy.chance|percent }}</td>
<td class="number">{{ k.control.value|percent }}</td>
<td class="drawn">{{ whisker(k.control.low, k.control.value, k.control.high, k.control.chance) }}</td>
<td class="number">{{ k.text.value|percent }}</td><td class="number">{{ k.image.value|percent }}</td>
<td class="number">{{ k.group.value|percent }}</td></tr>
{% endfor %}</table></div>
<p class="muted">The last three columns are of pairs of scenes that differ in the fact, as in Winoground: both captions
find their scene's (chance 25 %), both scenes their caption's (25 %), all at once (16.7 %); there a tie is a
failure. Dashed lines are chance.</p>
{% for part in probe.kinds %}
<h3>{{ part.kind.kind }}</h3>
{% if part.kind.variants %}<p class="muted">{% for m in part.kind.variants %}{{ m.name.partition('/')[2] }}
<span class="whole">{{ m.value|percent }} <small>of {{ m.n }}</small></span>{{ "; " if not loop.last }}
{%- endfor %}</p>{% endif %}
<div class="grid">{% for one in part.examples %}
<figure>{{ seen(one.uri, one.example.captions[0]) }}<figcaption>
{% if one.example.is_right %}<span class="good">✓ {{ one.example.captions[0] }}</span>
{% else %}{{ one.example.captions[0] }}<br><span class="bad">✗ {{ one.example.taken_for }}</span>{% endif %}
</figcaption></figure>{% endfor %}</div>
{% endfor %}
{% endif %}

{% for part in classifications %}{% set r = part.result %}
<h2>{{ part.title }}</h2>
{% if part.note %}<p>{{ part.note }}</p>{% endif %}
{{ measures(r.measures) }}
<p class="muted">Always answering the most frequent class would give {{ r.majority|percent }}. Dashed lines are
chance.</p>
<div class="plots">{% for title, svg in part.plots %}
<figure><figcaption>{{ title }}</figcaption><div class="plot">{{ svg }}</div></figure>{% endfor %}</div>
{% if r.calibration %}
<h3>How far its probabilities can be trusted</h3>
{{ measures(r.calibration.measures_before) }}
<p>After dividing the logits by a temperature of {{ "%.3g"|format(r.calibration.temperature) }}
{%- if r.calibration.logit_scale %} (that is, multiplying cosines by
{{ "%.3g"|format(r.calibration.logit_scale) }}){% endif %},
which was fitted on {{ r.calibration.fitted_on|thousands }} other pictures:</p>
{{ measures(r.calibration.measures_after) }}
{% endif %}
{% if part.prompts %}
<h3>What the wording does</h3>
<p class="muted">Top-1 accuracy with each prompt alone; best and worst are {{ r.prompts.spread|percent }} apart.</p>
<div class="wide"><table>
<tr><th>prompt</th><th class="number">top-1</th><th class="drawn"></th></tr>
<tr><td><strong>all together</strong></td><td class="number">{{ r.prompts.ensemble.value|percent }}</td>
<td class="drawn">{{ whisker(r.prompts.ensemble.low, r.prompts.ensemble.value, r.prompts.ensemble.high, none) }}</td>
</tr>
{% for score in part.prompts %}
<tr><td>{{ score.template }}</td><td class="number">{{ score.top1.value|percent }}</td>
<td class="drawn">{{ whisker(score.top1.low, score.top1.value, score.top1.high, none) }}</td></tr>
{% endfor %}</table></div>
{% endif %}
{% if part.worst %}
<h3>Classes found least</h3>
{% for row in part.worst %}
<p class="query"><strong>{{ row.name }}</strong> {{ row.recall|percent }} of {{ row.count|thousands }} found
{%- if row.times %}, most taken for <span class="bad">{{ row.taken_for }}</span> ({{ row.times }}){% endif %}</p>
<div class="grid">{% for one in row.mistakes %}{{ mistake(one, false) }}{% endfor %}</div>
{% endfor %}
{% endif %}
{% if part.surest %}
<h3>Surest mistakes</h3>
<p class="muted">Percentages divide one certainty between the given names; they are no probability that a name is
right.</p>
<div class="grid">{% for one in part.surest %}{{ mistake(one, true) }}{% endfor %}</div>
{% endif %}
{% if part.confusions %}
<details><summary>Most frequent confusions</summary>
<div class="wide"><table><tr><th>is</th><th>taken for</th><th class="number">times</th><th class="number">of</th></tr>
{% for own, other, times, count in part.confusions %}
<tr><td>{{ own }}</td><td class="bad">{{ other }}</td><td class="number">{{ times }}</td>
<td class="number">{{ count|thousands }}</td></tr>{% endfor %}</table></div></details>
{% endif %}
<h3>Each class, the worst first</h3>
{{ class_rows(part.classes) }}
{% if part.more_classes %}
<details><summary>{{ part.more_classes|length|thousands }} more classes</summary>
{{ class_rows(part.more_classes) }}</details>{% endif %}
{% endfor %}

{% if few_shot %}
<h2>A few pictures of each class</h2>
<div class="plots"><figure><figcaption>Top-1 accuracy of logistic regression on so many pictures a class; dots are
single draws, the band is the interval</figcaption><div class="plot">{{ few_shot.plot }}</div></figure>
<div class="wide"><table>
<tr><th class="number">pictures a class</th><th class="number">top-1</th><th class="number">95 % interval</th></tr>
{% if few_shot.result.zero_shot %}{% set zero = few_shot.result.zero_shot %}
<tr><td>none, by name</td><td class="number">{{ zero.value|percent }}</td>
<td class="number">{{ zero.low|percent }} – {{ zero.high|percent }}</td></tr>{% endif %}
{% for point in few_shot.result.points %}
<tr><td class="number">{{ point.shots }}</td><td class="number">{{ point.top1.value|percent }}</td>
<td class="number">{{ point.top1.low|percent }} – {{ point.top1.high|percent }}</td></tr>
{% endfor %}</table></div></div>
{% endif %}

{% if retrieval %}{% set r = retrieval.result %}
<h2>Retrieval</h2>
<p>{{ r.keys|length|thousands }} images and {{ r.captions|length|thousands }} distinct captions, each ranking all of the
other.</p>
{% for way, direction in retrieval.directions %}
<h3>{{ way|capitalize }}</h3>
{{ measures(direction.measures) }}
{% endfor %}
{% macro by_text(rows) %}{% for one in rows %}
<p class="query">“{{ one.query }}” <span class="muted">its own at rank {{ "%.4g"|format(one.rank) }}</span></p>
<div class="grid">{% for found in one.found %}
<figure class="{{ 'right' if found.is_right }}" title="{{ found.key }}">{{ seen(found.uri, found.key) }}</figure>
{% endfor %}</div>{% endfor %}{% endmacro %}
{% macro by_image(rows) %}<div class="pairs">{% for one in rows %}
<div class="pair"><div title="{{ one.key }}">{{ seen(one.uri, one.key) }}</div><div>
<ol>{% for found in one.found %}<li class="{{ 'good' if found.is_right }}">{{ found.text }}</li>{% endfor %}</ol>
{% if not one.found|selectattr("is_right")|list %}
<p class="muted">its own, at rank {{ "%.4g"|format(one.rank) }}: {{ one.own }}</p>{% endif %}
</div></div>{% endfor %}</div>{% endmacro %}
{% if retrieval.text_misses %}<h3>Captions that find another image first</h3>
{{ by_text(retrieval.text_misses) }}{% endif %}
{% if retrieval.text_hits %}<h3>Captions that find their own</h3>{{ by_text(retrieval.text_hits) }}{% endif %}
{% if retrieval.image_misses %}<h3>Images that find another caption first</h3>
{{ by_image(retrieval.image_misses) }}{% endif %}
{% if retrieval.image_hits %}<h3>Images that find their own</h3>{{ by_image(retrieval.image_hits) }}{% endif %}
{% endif %}

{% if result.comparison %}
<h2>Against {{ result.comparison.other }}</h2>
<p>{{ result.model }} ({{ result.runtime }}) less {{ result.comparison.other }}
({{ result.comparison.other_runtime }}), on the same pictures. Where the interval holds 0, no difference is shown.</p>
{{ measures(result.comparison.measures) }}
{% endif %}

{% if failures %}
<h2>Records that could not be used</h2>
<div class="wide"><table><tr><th>record</th><th>reason</th></tr>
{% for item in failures %}<tr><td>{{ item.key }}</td><td>{{ item.reason }}</td></tr>{% endfor %}</table></div>
{% if result.failures|length > failures|length %}<p class="muted">and
{{ (result.failures|length - failures|length)|thousands }} more</p>{% endif %}
{% endif %}

<h2>How this was measured</h2>
<p class="muted">Model {{ result.model }} ({{ result.runtime }}){% if result.data %}, data {{ result.data }}{% endif %},
seed {{ result.seed }}, {{ result.resamples|thousands }} resamples for intervals that are not Wilson's.
{% if result.classification and result.classification.templates %}Prompts:
{% for template in result.classification.templates %}<code>{{ template }}</code>{{ ", " if not loop.last }}{% endfor %}.
{% endif %}</p>
"""
