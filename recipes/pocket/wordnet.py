"""What WordNet 3.0 says of a noun: what kind of thing it is, and a gloss. Read from the files of its Debian package."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

# First senses in these of WordNet's lexicographer files can be drawn: animal, artifact, body, food, object, person,
# phenomenon, plant, substance.
DRAWABLE = {"05", "06", "08", "13", "17", "18", "19", "20", "27"}


class Synset(NamedTuple):
    lexicographer_file: str
    words: list[str]
    hypernyms: list[str]
    gloss: str


class Nouns:
    def __init__(self, folder: Path) -> None:
        self.synsets = {}
        for line in (folder / "data.noun").read_text().splitlines():
            if line[0] == " ":  # the licence
                continue
            fields, gloss = line.split(" | ", 1)
            offset, file, _, count, *rest = fields.split()
            words, pointers = rest[: 2 * int(count, 16) : 2], rest[2 * int(count, 16) + 1 :]
            above = [pointers[i + 1] for i, kind in enumerate(pointers) if kind in ("@", "@i")]
            self.synsets[offset] = Synset(file, [word.replace("_", " ") for word in words], above, gloss.split(";")[0])
        self.senses = {}
        for line in (folder / "index.noun").read_text().splitlines():
            if line[0] != " ":
                lemma, *rest = line.split()
                self.senses[lemma.replace("_", " ")] = rest[-int(rest[1]) :]  # the most frequent first

    def sense(self, label: str) -> Synset | None:
        """The first drawable of the three most frequent senses of a label or, failing that, of its last word."""
        head = label.split()[-1]
        for word in (label, label.removesuffix("s"), head, head.removesuffix("s"), head.removesuffix("es")):
            if word in self.senses:
                senses = [self.synsets[offset] for offset in self.senses[word][:3]]
                return next((sense for sense in senses if sense.lexicographer_file in DRAWABLE), senses[0])
        return None

    def kinds(self, synset: Synset, count: int) -> list[str]:
        """What it is a kind of, the nearest first: for *lemon*, citrus fruit, edible fruit, produce."""
        names = []
        while synset.hypernyms and len(names) < count:
            synset = self.synsets[synset.hypernyms[0]]
            names.append(synset.words[0])
        return names

    def drawable(self, senses: int = 1) -> set[str]:
        """Lemmas that mean a thing in one of their most frequent senses."""
        return {
            lemma
            for lemma, offsets in self.senses.items()
            if any(self.synsets[offset].lexicographer_file in DRAWABLE for offset in offsets[:senses])
        }


def english_words(folder: Path) -> set[str]:
    """Everything that WordNet lists, of any part of speech."""
    return {
        line.split()[0]
        for part in ("noun", "adj", "verb", "adv")
        for line in (folder / f"index.{part}").read_text().splitlines()
        if line[0] != " "
    }
