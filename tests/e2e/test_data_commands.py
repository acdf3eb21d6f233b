"""``clip data check`` and ``clip data pack`` as installed commands, on the example pictures."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from clip.data.sources import open_source

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT / "examples" / "photos"


def _clip(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clip", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """The example photographs with a copy, a cut file, a missing file and a row without a caption."""
    folder = tmp_path / "photos"
    shutil.copytree(PHOTOS, folder)
    (folder / "copy.jpg").write_bytes((folder / "cat.jpg").read_bytes())
    (folder / "cut.jpg").write_bytes((folder / "coffee.jpg").read_bytes()[:2000])
    table = folder / "labels.csv"
    rows = ["copy.jpg,cat,the cat again", "cut.jpg,cup,half a cup", "gone.jpg,none,no such file", "rocket.jpg,rocket,"]
    table.write_text(table.read_text(encoding="utf-8") + "\n".join(rows) + "\n", encoding="utf-8")
    return table


def test_check_reports_on_stdout_writes_a_page_and_fails_when_asked(spoilt: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = _clip("data", "check", spoilt, "--html", page, "--json", "--check", "--against", PHOTOS / "labels.csv")
    assert done.returncode == 3, done.stderr
    report = json.loads(done.stdout)
    counts = {finding["name"]: finding["count"] for finding in report["findings"] if finding["count"]}
    assert counts["unreadable-pictures"] == 2
    assert counts["unreadable-records"] == 1
    assert counts["same-file"] == 1
    assert counts["overlap-pictures"] == 8
    assert "same-file: 11.1 % is above the limit of 1 %" in done.stderr
    html = page.read_text(encoding="utf-8")
    assert "no such file" in html
    assert html.count("data:image/jpeg;base64,") > 20
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_pack_writes_check_reads(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    done = _clip("data", "pack", PHOTOS / "labels.csv", "--output", shards, "--samples-per-shard", 3, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) | {"size_bytes": 0} == {
        "output": str(shards),
        "shards": 3,
        "samples": 8,
        "size_bytes": 0,
        "failed": 0,
    }
    names = sorted(shards.glob("*.tar"))
    with tarfile.open(names[0]) as tar:
        packed = {Path(member.name).suffix for member in tar}
    assert {".jpg", ".txt"} <= packed
    original, copied = open_source(PHOTOS / "labels.csv"), open_source(shards)
    assert {copied[i].captions for i in range(8)} == {original[i].captions for i in range(8)}
    images = {original[i].image.read_bytes() for i in range(8)}  # type: ignore[union-attr]
    assert {copied[i].image for i in range(8)} == images  # bytes as they were

    report = json.loads(_clip("data", "check", shards, "--against", PHOTOS / "labels.csv", "--json").stdout)
    overlap = {f["name"]: (f["count"], f["of"]) for f in report["findings"]}
    assert (report["pairs"], overlap["overlap-pictures"]) == (8, (8, 8))

    again = _clip("data", "pack", PHOTOS / "labels.csv", "--output", shards)
    assert again.returncode != 0
    assert "has shards already" in again.stderr
    before = [name.read_bytes() for name in names]
    assert (
        _clip("data", "pack", PHOTOS / "labels.csv", "-o", shards, "--overwrite", "--samples-per-shard", 3).stdout == ""
    )
    assert [name.read_bytes() for name in sorted(shards.glob("*.tar"))] == before  # the same data, the same bytes


def test_pack_reports_what_it_leaves_out(spoilt: Path, tmp_path: Path) -> None:
    done = _clip("data", "pack", spoilt, "--output", tmp_path / "shards", "--max-failures", "0.5")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "gone.jpg" in done.stderr
    assert "left out" in done.stderr
    assert len(open_source(tmp_path / "shards")) >= 8


def test_a_name_that_is_not_utf8_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    name = os.fsdecode(b"caf\xe9")
    shutil.copy(PHOTOS / "cat.jpg", folder / f"{name}.jpg")
    (folder / f"{name}.txt").write_text("a cat", encoding="utf-8")
    done = _clip("data", "check", "pictures", "--html", "report.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 usable pairs" in done.stdout
    assert (tmp_path / "report.html").is_file()


def test_the_page_shows_what_the_commands_print(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "data-check.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n\$ clip (.*)\n((?:.*\n)*?)^```", page, re.M)
    assert len(blocks) == 3
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for command, output in blocks:
        assert _clip(*shlex.split(command), cwd=tmp_path).stdout == output
    python = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    done = subprocess.run([sys.executable, "-c", python[0]], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "near-duplicates 0 8" in done.stdout


def test_help_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from clip.cli.main import run; status = run(['data', 'check', '--help']); "
        "print(status, sorted({'torch', 'numpy', 'PIL', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 []"
