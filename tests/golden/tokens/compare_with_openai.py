"""Compare ids with OpenAI's, and make the golden sample from them.

OpenAI's package has our import name, so it runs in an environment of its own, in a second process:

    other/bin/python -m pip install openai-clip
    python tests/golden/tokens/compare_with_openai.py --reference-python other/bin/python --count 200000
    python tests/golden/tokens/compare_with_openai.py --reference-python other/bin/python --write

The first prints how many strings have equal ids (or equally fail), with the special words and without, and the first
differences; it exits 1 if there are any. The second writes ``tokens.json.xz`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import lzma
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hard_strings import hard_strings

GOLDEN = Path(__file__).with_name("tokens.json.xz")
GOLDEN_COUNT, GOLDEN_SEED = 3000, 77
PLAIN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
ROWS: list[tuple[Any, dict[str, Any]]] = [
    ("a photo of a dog", {}),
    (["hello world", ""], {}),
    ([], {}),
    (["dog"], {"context_length": 4}),
    (["a dog"], {"context_length": 3}),
    (["a dog", "1 2 3 4 5"], {"context_length": 5, "truncate": True}),
    ("two dogs", {"context_length": 1, "truncate": True}),
    ("two dogs", {"context_length": 2, "truncate": True}),
    ("dog " * 75, {}),
    ("dog " * 76, {}),
    ("dog " * 76, {"truncate": True}),
    (["a", "end <|endoftext|> end"], {"context_length": 8}),
    (("a", "b"), {"context_length": 4}),
]

REFERENCE = """
import json, sys, warnings
warnings.simplefilter("ignore")
import clip, ftfy, regex, torch
from clip.simple_tokenizer import SimpleTokenizer
source, target, plain, rows = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
special, ordinary = SimpleTokenizer(), SimpleTokenizer()
ordinary.pat = regex.compile(plain, regex.IGNORECASE)

def attempt(call):
    try:
        return call()
    except Exception as error:
        return type(error).__name__

strings = json.loads(open(source).read())
result = {
    "versions": {"ftfy": ftfy.__version__, "regex": regex.__version__, "python": sys.version.split()[0]},
    "special": [attempt(lambda: special.encode(text)) for text in strings],
    "ordinary": [attempt(lambda: ordinary.encode(text)) for text in strings],
    "rows": [attempt(lambda: clip.tokenize(texts, **options).tolist()) for texts, options in rows],
}
result["decoded"] = [ids if isinstance(ids, str) else special.decode(ids) for ids in result["special"]]
open(target, "w").write(json.dumps(result))
"""


def reference(python: str, strings: Sequence[str]) -> dict[str, Any]:
    """What OpenAI's package gives for ``strings``: ids, or the name of the error."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "strings.json"), Path(folder, "ids.json")
        source.write_text(json.dumps(strings))
        # In that folder, so that no package of ours is on its path.
        command = [python, "-c", REFERENCE, str(source), str(target), PLAIN, json.dumps(ROWS)]
        subprocess.run(command, check=True, cwd=folder)
        return dict(json.loads(target.read_text()))


def attempt(call: Any) -> Any:
    try:
        return call()
    except Exception as error:  # noqa: BLE001  # errors are compared too
        return type(error).__name__


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-python", required=True, help="Python of an environment that has OpenAI's clip")
    parser.add_argument("--count", type=int, default=200_000, help="strings to compare (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write the golden sample instead")
    options = parser.parse_args()

    if options.write:
        # Code points that are not assigned yet may become letters with a newer Python or `regex`; golden ids may not.
        strings = [
            text
            for text in hard_strings(GOLDEN_COUNT, GOLDEN_SEED)
            if not any(unicodedata.category(character) == "Cn" for character in text)
        ]
        golden = {"strings": strings, "calls": ROWS, **reference(options.reference_python, strings)}
        GOLDEN.write_bytes(lzma.compress(json.dumps(golden, separators=(",", ":")).encode(), preset=9))
        print(f"{len(strings)} strings, {GOLDEN.stat().st_size} bytes, reference {golden['versions']}")
        return 0

    from clip.simple_tokenizer import SimpleTokenizer

    strings = list(hard_strings(options.count, options.seed))
    expected = reference(options.reference_python, strings)
    tokenizer = SimpleTokenizer()
    failures = 0
    for name, special_words in (("special", True), ("ordinary", False)):
        found = [attempt(lambda t=text, s=special_words: tokenizer.encode(t, special_words=s)) for text in strings]
        different = [i for i, (ours, theirs) in enumerate(zip(found, expected[name], strict=True)) if ours != theirs]
        print(f"{name}: {len(strings) - len(different)} of {len(strings)} equal, reference {expected['versions']}")
        for i in different[:10]:
            print(f"  {strings[i]!r}\n    ours   {found[i]}\n    theirs {expected[name][i]}")
        failures += len(different)
    decoded = [text if isinstance(text, str) else tokenizer.decode(text) for text in expected["special"]]
    undecoded = sum(ours != theirs for ours, theirs in zip(decoded, expected["decoded"], strict=True))
    print(f"decode: {len(strings) - undecoded} of {len(strings)} equal")
    return 1 if failures or undecoded else 0


if __name__ == "__main__":
    sys.exit(main())
