"""Hits and clusters as a page of pictures that is complete in itself: small copies of the pictures are within it.

Files are read once more for their copies, also from within shards. One that has gone, or cannot be read, is shown as
that.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from clip.data.likeness import image_bytes
from clip.data.shards import index_of, read_member
from clip.data.tar_index import ShardIndex
from clip.errors import ClipError
from clip.html_page import page, readable, thumbnail
from clip.images import MAX_BYTES, read_pixels
from clip.search.alike import Cluster
from clip.search.query import parse
from clip.search.store import Row

if TYPE_CHECKING:
    from clip.search.index import Results

__all__ = ["MAX_COPIES", "duplicates_page", "facts", "search_page", "size_text"]

MAX_COPIES = 400
"""Pictures of which a page has copies, so that it has some 8 MB at most. Of more it says where they are."""

_SIDE, _SMALL_SIDE = 320, 128  # pixels of a copy: about twice what it is shown at, for sharp screens
_MAX_SMALL = 24  # of the pictures that are folded into one hit
_MAX_NAMES = 200  # of one hit or cluster


class _Picture(NamedTuple):
    """What a template shows of one file."""

    name: str
    folder: str
    link: str | None
    copy: Markup | None
    problem: str
    """Why there is no copy."""


_Wanted = tuple[str, int]  # the path of a picture, and the side of its copy


def search_page(results: Results, *, address: str) -> str:
    """The hits of a query as an HTML page, the best first; the pictures of the query stand above them."""
    # A picture that was asked for as bytes or pixels has no file.
    pictures = [os.path.abspath(path) for path in parse(results.query).images if os.path.isfile(path)]  # noqa: PTH100, PTH113
    wanted = [(path, _SMALL_SIDE) for path in pictures]
    wanted += [(hit.path, _SIDE) for hit in results.hits]
    wanted += [(path, _SMALL_SIDE) for hit in results.hits for path in hit.alike[:_MAX_SMALL]]
    shown = _pictures(wanted)
    hits = [
        {
            "picture": shown[hit.path, _SIDE],
            "match": hit.match,
            "similarity": hit.similarity,
            "facts": facts(hit.row),
            "count": len(hit.alike),
            "alike": [shown[path, _SMALL_SIDE] for path in hit.alike[:_MAX_SMALL]],
            "names": [readable(path) for path in hit.alike[_MAX_SMALL:_MAX_NAMES]],
            "not_named": max(0, len(hit.alike) - _MAX_NAMES),
        }
        for hit in results.hits
    ]
    return page(
        readable(results.query),
        _MACROS + _SEARCH,
        look=Markup(_LOOK),
        hits=hits,
        asked=[shown[path, _SMALL_SIDE] for path in pictures],
        reason=readable(results.reason or ""),
        considered=results.considered,
        total=results.total,
        address=readable(address),
    )


def duplicates_page(clusters: Iterable[Cluster], *, address: str, most_clusters: int = 200) -> str:
    """Clusters of pictures that are alike as an HTML page: the first ``most_clusters`` of them; all are counted."""
    counted = others = freed = 0
    first: list[Cluster] = []
    for cluster in clusters:
        counted += 1
        others += len(cluster.others)
        freed += cluster.freed_bytes
        if len(first) < most_clusters:
            first.append(cluster)
    rows = [(cluster.keep, *cluster.others[: _MAX_NAMES - 1]) for cluster in first]
    shown = _pictures((row.path, _SIDE) for members in rows for row in members)
    return page(
        "Duplicates",
        _MACROS + _DUPLICATES,
        look=Markup(_LOOK),
        clusters=[
            {
                "count": 1 + len(cluster.others),
                "is_same_file": cluster.is_same_file,
                "freed": size_text(cluster.freed_bytes),
                "members": [(shown[row.path, _SIDE], facts(row)) for row in members],
                "not_shown": 1 + len(cluster.others) - len(members),
            }
            for cluster, members in zip(first, rows, strict=True)
        ],
        counted=counted,
        others=others,
        freed=size_text(freed),
        address=readable(address),
    )


def facts(row: Row) -> list[str]:
    """What is known of a file, in a few words."""
    known = []
    if row.width and row.height:
        known.append(f"{row.width} × {row.height}")
    if row.format:
        known.append(readable(row.format))
    if row.size_bytes is not None:
        known.append(size_text(row.size_bytes))
    if row.modified_ns is not None:
        try:
            known.append(datetime.fromtimestamp(row.modified_ns / 1e9).strftime("%Y-%m-%d"))
        except (OverflowError, OSError, ValueError):  # a time that no calendar has
            known.append("no date")
    return known


def size_text(count: int) -> str:
    """Bytes in powers of a thousand: "22 kB"."""
    if count < 1000:
        return f"{count} bytes"
    size = float(count)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.0f} {unit}" if size >= 9.95 else f"{size:.1f} {unit}"
    return f"{size / 1000:,.1f} TB"


# Small copies --------------------------------------------------------------------------------------------------------


def _pictures(wanted: Iterable[_Wanted]) -> Mapping[_Wanted, _Picture]:
    """What is shown of each; made in threads, with a copy for the first ``MAX_COPIES``."""
    each = list(dict.fromkeys(wanted))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        copied = pool.map(_copied, each[:MAX_COPIES])
        return dict(zip(each, itertools.chain(copied, map(_named, each[MAX_COPIES:])), strict=True))


def _named(wanted: _Wanted, problem: str = "not copied") -> _Picture:
    folder, name = os.path.split(wanted[0])
    return _Picture(readable(name or wanted[0]), readable(folder), None, None, problem)


def _copied(wanted: _Wanted) -> _Picture:
    path, side = wanted
    try:
        pixels = read_pixels(_contents(path), shorter_side=side)
    except FileNotFoundError:
        return _named(wanted, "not there any more")
    except (ClipError, OSError):
        return _named(wanted, "cannot be read")
    is_file = os.path.isabs(path) and os.path.lexists(path)  # noqa: PTH117
    link = Path(path).as_uri() if is_file else None
    return _named(wanted, "")._replace(link=link, copy=thumbnail(pixels, side=side))


def _contents(path: str) -> bytes:
    """The bytes of a picture: of a file, or of ``shard.tar/member``. Raises FileNotFoundError if it has gone."""
    if not ("\0" in path or os.path.lexists(path)):
        shard, found, member = path.partition(".tar/")
        if not found or not os.path.isfile(f"{shard}.tar"):  # noqa: PTH113
            raise FileNotFoundError(path)
        return _member(f"{shard}.tar", member)
    return image_bytes(Path(path))


def _member(shard: str, name: str) -> bytes:
    index, records = _records(shard, os.stat(shard).st_mtime_ns)  # noqa: PTH116
    key, _, extension = name.rpartition(".")
    record = records.get(key, -1)
    place = index.member(record, "image") if record >= 0 and index.image_extensions[record] == extension else None
    if place is None:
        raise FileNotFoundError(f"{shard}/{name}")
    with open(shard, "rb", buffering=0) as file:  # noqa: PTH123
        return read_member(file, place, MAX_BYTES)


@functools.lru_cache(maxsize=4)
def _records(shard: str, modified_ns: int) -> tuple[ShardIndex, Mapping[str, int]]:
    index = index_of(Path(shard))
    return index, {key: record for record, key in enumerate(index.keys)}


# Pages ---------------------------------------------------------------------------------------------------------------

_LOOK = """
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 10.2rem), 1fr)); gap: 1.4rem 1rem;
  list-style: none; margin: 1.2rem 0; padding: 0; }
.sheet > li { min-width: 0; }
.sheet img, .missing { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--soft);
  border: 1px solid var(--line); border-radius: 0.4rem; }
.sheet a { display: block; border-radius: 0.4rem; }
a:hover img { border-color: var(--accent); }
a:focus-visible, summary:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 0.2rem; }
.missing { display: grid; place-items: center; padding: 0.4rem; text-align: center; color: var(--faint);
  border-style: dashed; font-size: 0.8rem; }
.sheet p { margin: 0.15rem 0; line-height: 1.3; }
.match { display: grid; grid-template-columns: 1fr auto; align-items: center; gap: 0.5rem; }
.match .bar { min-width: 0; height: 0.5rem; margin: 0; }
.match b { font-variant-numeric: tabular-nums; }
.sheet .name { font-size: 0.92rem; font-weight: 600; display: -webkit-box; -webkit-box-orient: vertical;
  -webkit-line-clamp: 3; overflow: hidden; }
.sheet .facts, .sheet .place, details { font-size: 0.8rem; color: var(--faint); }
details { margin: 0.3rem 0; } summary { cursor: pointer; color: var(--accent); }
.few { display: grid; grid-template-columns: repeat(auto-fill, minmax(4.2rem, 1fr)); gap: 0.5rem; margin: 0.4rem 0;
  list-style: none; padding: 0.2rem; max-height: 16rem; overflow-y: auto; }
.few > li { min-width: 0; line-height: 1.25; }
.few p { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden; }
.asked { display: flex; flex-wrap: wrap; gap: 0.8rem; margin: 0.8rem 0; }
.asked figure { width: 7rem; }
.kept { position: relative; }
.kept b { position: absolute; top: 0.4rem; left: 0.4rem; font-size: 0.75rem; color: var(--good);
  background: var(--back); border: 1px solid currentColor; border-radius: 0.3rem; padding: 0 0.4em; }
@media print { .sheet > li { break-inside: avoid; } }
"""

_MACROS = """
{% macro image(one) %}
{% if one.link %}<a href="{{ one.link }}">{% endif %}
{% if one.copy %}<img src="{{ one.copy }}" alt="{{ one.name }}" decoding="async">
{% else %}<div class="missing">{{ one.problem }}</div>{% endif %}
{% if one.link %}</a>{% endif %}
{% endmacro %}
{% macro about(one, facts) %}
<p class="name" title="{{ one.name }}"><bdi>{{ one.name }}</bdi></p>
{% if facts %}<p class="facts">{{ facts|join(" · ") }}</p>{% endif %}
{% if one.folder %}<p class="place"><bdi>{{ one.folder }}</bdi></p>{% endif %}
{% endmacro %}
{% macro whole_percent(share) %}{{ "< 1 %" if share < 0.005 else "%.0f %%"|format(100 * share) }}{% endmacro %}
{% macro plural(count, one, many) %}{{ count|thousands }} {{ one if count == 1 else many }}{% endmacro %}
<style>{{ look }}</style>
"""

_SEARCH = """
{% if asked %}<div class="asked">{% for one in asked %}<figure>{{ image(one) }}
<figcaption><bdi>{{ one.name }}</bdi></figcaption></figure>{% endfor %}</div>{% endif %}
<p class="muted">{{ plural(hits|length, "hit", "hits") }} among {{ plural(considered, "picture", "pictures") }}
{{ "that fulfil the conditions, of " ~ total|thousands if considered != total }} in <code>{{ address }}</code>.
{% if hits %}The bar is the probability that a picture shows what was asked for.{% endif %}</p>
{% if reason %}<p>{{ reason }}</p>{% endif %}
<ol class="sheet">
{% for hit in hits %}
<li>
{{ image(hit.picture) }}
<p class="match">{{ bar(hit.match) }} <b>{{ whole_percent(hit.match) }}</b></p>
{{ about(hit.picture, hit.facts) }}
<p class="facts">similarity {{ "{:z.3f}".format(hit.similarity) }}</p>
{% if hit.count %}
<details><summary>{{ hit.count|thousands }} alike</summary>
<ul class="few">
{% for one in hit.alike %}<li>{{ image(one) }}<p title="{{ one.name }}"><bdi>{{ one.name }}</bdi></p></li>{% endfor %}
</ul>
{% for name in hit.names %}<p><bdi>{{ name }}</bdi></p>{% endfor %}
{% if hit.not_named %}<p>and {{ hit.not_named|thousands }} more</p>{% endif %}
</details>
{% endif %}
</li>
{% endfor %}
</ol>
"""

_DUPLICATES = """
{% if counted %}
<p>{{ plural(counted, "group", "groups") }} of pictures that are the same, or nearly, in <code>{{ address }}</code>.
To keep one of each would free {{ freed }} of {{ plural(others, "other picture", "other pictures") }}.</p>
<p class="muted">Nothing was deleted. Look before you do: pictures that are nearly the same may differ in what matters.
{% if counted > clusters|length %}Shown are the {{ clusters|length|thousands }} largest groups.{% endif %}</p>
{% else %}<p>No two pictures in <code>{{ address }}</code> are alike.</p>{% endif %}
{% for cluster in clusters %}
<h2>{{ plural(cluster.count, "picture", "pictures") }} <span class="muted">
{{ "the same file" if cluster.is_same_file else "nearly the same" }}; to keep one frees {{ cluster.freed }}</span></h2>
<ul class="sheet">
{% for one, facts in cluster.members %}
<li{% if loop.first %} class="kept"{% endif %}>{{ image(one) }}
{% if loop.first %}<b>keep</b>{% endif %}
{{ about(one, facts) }}</li>
{% endfor %}
</ul>
{% if cluster.not_shown %}<p class="muted">and {{ cluster.not_shown|thousands }} more</p>{% endif %}
{% endfor %}
"""
