"""The pages of a board, as a browser shows them, and the folders that they are of."""

from __future__ import annotations

import csv
import functools
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards import compute, with_data, with_value
from conftest import harness
from pydantic import ValidationError

from harness.board.build import build_site, content_of, read_entries, site_files, tables_of
from harness.board.checked import verification
from harness.board.drawing import Scale, interval, time_of
from harness.board.entry import Entry, read_entry, write_entry
from harness.board.entry_page import entry_page
from harness.board.front import fronts
from harness.board.immutable import write_beside
from harness.board.pages import answer, file_of
from harness.board.score import NO_EFFECT, Scored, TrackTable, ranked, table_of
from harness.board.verify import verified
from harness.errors import InputError
from harness.reporting.statistics import aggregate
from harness.store import Store
from harness.study import open_study


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Entry]]:
    return compute(tmp_path_factory.mktemp("board"))


def test_no_table_takes_the_page_of_another(computed: Any) -> None:
    entry = computed[2]["keep"]
    named = [("index", 1), ("small", 1), ("small", 2), ("small-version-2", 1), ("small", 3)]
    several = [
        with_value(with_value(entry, "track.track", name), "track.version", number) for name, number in named
    ]
    tables = tables_of(several)
    names = [(table.name, table.track.track, table.track.version) for table in tables]
    assert names == [
        ("index-version-1", "index", 1),
        ("small", "small", 3),
        ("small-version-1", "small", 1),
        ("small-version-2", "small-version-2", 1),
        ("small-version-2-2", "small", 2),
    ]
    files = dict(site_files(tables))
    assert "What resists model collapse</h1>" in files["index.html"].decode()
    old = next(e for e in several if (e.track.track, e.track.version) == ("small", 2))
    assert 'href="../small-version-2-2.html"' in files[file_of(old)].decode(), (
        "an entry's page leads to its own table"
    )


def test_tracks_without_entries_are_named(computed: Any) -> None:
    """Those that come with the harness, also those that nobody has run."""
    entered = with_data(computed[2]["keep"], lambda data: data["track"].update(track="laptop-task"))
    for tables in (tables_of([entered]), []):
        text = dict(site_files(tables))["index.html"].decode()
        assert "(sft-2b). Grade-school mathematics in words" in text
        assert ("(laptop-task)" in text) == (not tables)
    others = dict(site_files(tables_of([computed[2]["keep"]])))["index.html"].decode()
    assert "(sft-2b)" not in others, "a board of other tracks says nothing of these"


HOSTILE = '</td><script>document.title="owned"</script><img src=x onerror=alert(1)>\u202egnp.exe\x1b[2J'


@pytest.fixture(scope="module")
def site(computed: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board with an entry whose texts are hostile."""
    folder = tmp_path_factory.mktemp("site")
    for entry in computed[2].values():
        write_entry(entry, folder / "entries")
    data = json.loads(computed[2]["accumulate"].content)
    data |= {"mitigation": "hostile", "settings": {HOSTILE: HOSTILE}, "configuration_hash": 32 * "f"}
    data["provenance"] |= {"devices": [HOSTILE], "commits": [HOSTILE]}
    data["seeds"]["0"]["detail"] = HOSTILE
    for result in data["seeds"].values():
        result |= {"keys": [], "chain": f"hostile {result['chain']}"}
    write_entry(Entry.model_validate_json(json.dumps(data)), folder / "entries")
    (folder / "entries" / "README.md").write_text("What is here.\n")
    lines = list(build_site(folder / "entries", folder / "pages"))
    assert lines == ["left out, for they are no entries: README.md"]
    return folder / "pages"


def test_a_board_is_the_same_byte_by_byte(site: Path, tmp_path: Path) -> None:
    list(build_site(site.parent / "entries", tmp_path))
    files = {path.relative_to(site): path.read_bytes() for path in site.rglob("*") if path.is_file()}
    assert {
        path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    } == files
    assert not list(build_site(site.parent / "entries", tmp_path))[:-1], "nothing has changed"
    said = list(build_site(site.parent / "entries", tmp_path, answers=True))
    assert said[0].endswith(
        ": No entry is better than the baseline beyond doubt. Without a mitigation, heterozygosity (1 - sum "
        "of squared probabilities) falls by 0.1436."
    )
    assert not list(build_site(tmp_path, tmp_path)), "the pages lie beside the entries as well"
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()} == set(files)


def test_what_has_changed_is_told(site: Path, tmp_path: Path) -> None:
    shutil.copytree(site.parent / "entries", tmp_path / "entries")
    list(build_site(tmp_path / "entries", tmp_path / "pages"))
    (victim,) = (tmp_path / "entries" / "small").glob("keep-*")
    victim.unlink()
    (tmp_path / "pages" / "small" / "mine.html").write_text("of somebody else")
    assert "gone: small keep" in list(build_site(tmp_path / "entries", tmp_path / "pages"))
    left = {path.name for path in (tmp_path / "pages" / "small").iterdir()}
    assert "mine.html" in left and victim.with_suffix(".html").name not in left
    assert victim.name in left, "the pages' folder may be one of entries too, and the only one that has it"
    (other,) = (tmp_path / "entries" / "small").glob("accumulate-*")
    newer = with_data(read_entry(other), lambda data: data["track"].update(version=2))
    for tables in ({"small", "small-version-1"}, {"small"}):  # as it comes, and as it goes again
        if len(tables) == 2:
            added = write_entry(newer, tmp_path / "entries")
        else:
            added.unlink()
        list(build_site(tmp_path / "entries", tmp_path / "pages"))
        for form in ("html", "csv"):
            assert {path.stem for path in (tmp_path / "pages").glob(f"*.{form}")} - {"index"} == tables


def test_a_new_mark_is_told(computed: Any, tmp_path: Path) -> None:
    _, root, entries = computed
    place = [write_entry(entry, tmp_path) for entry in entries.values()][-1]
    found = read_entry(place)
    assert list(build_site(tmp_path, tmp_path)) == list(build_site(tmp_path, tmp_path)) == []
    write_beside(verification(found, None, verified(found, root)), place)
    (line,) = build_site(tmp_path, tmp_path)
    assert line.startswith(f"marked: small {found.mitigation}, ") and "verified 20" in line


def test_nothing_hostile_is_markup(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text()
        assert "<script>document" not in text and "<img" not in text and "\u202e" not in text, path
        assert "\x1b" not in text and "Content-Security-Policy" in text
    assert "owned" in (site / "small" / _page(site, "hostile")).read_text(), "it is shown all the same"


def _page(site: Path, name: str) -> str:
    (found,) = (path.name for path in (site / "small").glob(f"{name}-*.html"))
    return found


def test_pages_and_tables_have_the_same_numbers(site: Path) -> None:
    rows = list(csv.DictReader((site / "small.csv").open()))
    board = json.loads((site / "board.json").read_text())["tracks"]["small"]["entries"]
    assert [row["entry"] for row in rows] == [row["entry"] for row in board]
    assert [float(row["benefit"]) for row in rows] == [row["benefit"] for row in board]
    page = (site / "small.html").read_text()
    shown = re.findall(r'<tr class="[^"]*" data-begins="\d">(.*?)</tr>', page)
    assert len(shown) == len(rows)
    for line, row in zip(shown, rows, strict=True):
        cells = [html.unescape(cell) for cell in re.findall(r'data-value="([^"]*)"', line)]
        assert cells[1] == row["entry"] and float(cells[2]) == pytest.approx(float(row["benefit"]))


def test_folders_of_entries_that_are_none(computed: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder of entries"):
        read_entries(tmp_path / "missing")
    assert read_entries(tmp_path) == ([], [])
    place = write_entry(computed[2]["keep"], tmp_path)
    (tmp_path / "other").mkdir()
    shutil.move(place, tmp_path / "other" / place.name)
    with pytest.raises(InputError, match="is an entry of the track small, in another track's folder"):
        read_entries(tmp_path)


def test_no_entry_is_left_out_in_silence(
    computed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that leads nowhere, one to a folder, and a pipe are named; a closed folder is an error."""
    folder = tmp_path / "small"
    write_entry(computed[2]["keep"], tmp_path)
    (folder / "gone.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "linked").symlink_to(folder)
    os.mkfifo(folder / "pipe.json")
    entries, foreign = read_entries(tmp_path)
    assert len(entries) == 1
    assert [str(path) for path in foreign] == ["linked", "small/gone.json", "small/pipe.json"]

    scandir = os.scandir

    def closed(path: Any) -> Any:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(InputError, match="small cannot be read: Permission denied"):
        read_entries(tmp_path)


def test_where_pages_cannot_be(computed: Any, tmp_path: Path) -> None:
    """Nothing is written: among the entries, or where a folder has the name of a page."""
    write_entry(computed[2]["keep"], tmp_path / "entries")
    with pytest.raises(InputError, match="lies in the folder of entries"):
        list(build_site(tmp_path / "entries", tmp_path / "entries" / "pages"))
    (tmp_path / "pages" / "index.html").mkdir(parents=True)
    with pytest.raises(InputError, match="index.html is a folder, and a page is to be there"):
        list(build_site(tmp_path / "entries", tmp_path / "pages"))
    assert [path.name for path in (tmp_path / "pages").iterdir()] == ["index.html"]
    assert [path.name for path in (tmp_path / "entries").iterdir()] == ["small"]


def test_versions_of_a_track_are_tables_of_their_own(computed: Any, tmp_path: Path) -> None:
    entries = computed[2]
    data = json.loads(entries["keep"].content)
    data["track"]["version"] = 2
    newer = Entry.model_validate_json(json.dumps(data))
    tables = tables_of([*entries.values(), newer])
    assert [(table.name, table.track.version, len(table.lines)) for table in tables] == [
        ("small", 2, 1),
        ("small-version-1", 1, 3),
    ]


def test_an_earlier_version_says_so_and_leads_to_the_newest(computed: Any) -> None:
    entries = list(computed[2].values())
    newer = with_data(entries[0], lambda data: data["track"].update(version=2))
    made = site_files(tables_of([*entries, newer]))
    files = {name: content_of(content).decode() for name, content in made}
    old, new = files["small-version-1.html"], files["small.html"]
    assert '<a href="small.html">the newest table</a>' in old and "the newest table" not in new
    assert old.count("stale: version 1 of the track; the newest is 2</span>") == len(entries)
    assert "stale" not in new
    index = files["index.html"]
    assert index.index('href="small.html"') < index.index('href="small-version-1.html"')
    assert "Stale: version 1 of the track; the newest is 2." in index


def test_an_entry_says_how_to_run_it_again(computed: Any, tmp_path: Path) -> None:
    """The study on its page has the entry's own chains."""
    config, _, entries = computed
    entry = entries["keep"]
    (table,) = tables_of(list(entries.values()))
    line = next(line for line in table.lines if line.entry is entry)
    body = html.unescape(entry_page(line, entry, table.name))
    (study,) = re.findall(r"cat > study.yaml <<'EOF'\n(.*?)\nEOF\nharness run study.yaml\n", body, re.S)
    assert "harness leaderboard add study.yaml --mitigation keep --to board" in body
    (tmp_path / "small.yaml").write_text((config.parent / "small.yaml").read_text())
    (tmp_path / "study.yaml").write_text(study)
    prepared, scratch = open_study(tmp_path / "study.yaml", (), Store.read(computed[1]))
    with scratch:
        found = {chain.id for chain in prepared.chains}
    assert {result.chain for result in entry.seeds.values()} <= found


def test_a_baseline_that_improves_rises_by_nothing(computed: Any) -> None:
    (table,) = tables_of(list(computed[2].values()))
    assert " falls by 0." in answer(table)
    better = tuple(replace(line, rise=aggregate([-(line.rise.mean or 0.0)] * 5)) for line in table.lines)
    said = answer(replace(table, lines=better))
    assert " rises by 0." in said and "\u2212" not in said and "-0" not in said


def _named(lines: Sequence[Scored], entry: Entry) -> set[str]:
    """Who resists most, as the sentence of a board of these lines says it."""
    return set(re.findall("<b>(.*?)</b>", answer(TrackTable(entry.track, tuple(lines), (), "small"))))


@pytest.mark.parametrize("with_baseline", [True, False])
def test_who_resists_most_is_told_apart_from_none(computed: Any, with_baseline: bool) -> None:
    """Of 200 boards of 28 entries that do nothing, with what their seeds have in common, as many name one as
    Holm errs: 5 %, but for the scatter of 200 (three standard errors). Where five do something, nobody is
    named of whom the board says that it cannot be told apart from none."""
    entry, random = computed[2]["keep"], np.random.default_rng(3)
    (plain,) = table_of(entry.track, [entry]).lines

    def board(gained: float) -> list[Scored]:
        own = random.normal(size=(28, 6)) + random.normal(size=6)  # the baseline's, with the same seeds
        own[:5] += gained
        rows = [*own, np.zeros(6)] if with_baseline else own
        names = [f"m{place}" for place in range(28)] + ["none"]
        return ranked(
            [
                replace(plain, entry=entry.model_copy(update={"mitigation": name}), benefit=aggregate(row))
                for name, row in zip(names, rows, strict=False)
            ]
        )

    named, alone = 0, 0
    for _ in range(200):
        lines = board(0.0)
        named += bool(_named(lines, entry))
        best = [line for line in lines if line.rank is not None and line.rank.rank == 1]
        alone += any(line.benefit.low is not None and line.benefit.low > 0 for line in best)
    assert alone > 50, "the sentence went by this"
    assert named / 200 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    doubtful = 0
    for _ in range(50):
        lines = board(8.0)
        best = [line for line in lines if line.rank is not None and line.rank.rank == 1]
        sure = {line.entry.mitigation for line in best if line.better}
        assert _named(lines, entry) == sure
        assert not any(line.better and NO_EFFECT in line.badges for line in lines)
        doubtful += 0 < len(sure) < len(best)
    assert doubtful > 10, "some of rank 1 are named, and others are not"


def test_an_entry_says_how_many_tokens(computed: Any) -> None:
    def text(data: dict[str, Any]) -> None:
        data["track"]["config"]["data"]["block_size"] = 32

    entry = with_data(computed[2]["keep"], text)
    count = entry.cost.training_examples
    page = entry_page(None, entry, "small")
    assert f"<dt>tokens in them</dt><dd>{count * 32:,}</dd>" in page
    assert "tokens" not in entry_page(None, computed[2]["keep"], "small")


def test_what_generation_0_does_not_have_loses_no_seed(computed: Any) -> None:
    def pool(data: dict[str, Any]) -> None:
        data["track"]["score"]["beside"] = ["pool/kept_share"]
        for result in (*data["seeds"].values(), *data["baseline"].values()):
            result["metrics"]["pool/kept_share"] = [None, *[0.5] * 6]
        data["seeds"]["0"]["metrics"]["pool/kept_share"][3] = None

    entry = with_data(computed[2]["keep"], pool)
    body = entry_page(None, entry, "small")
    assert "none (baseline), 8 seeds" in body and "keep, 7 to 8 seeds" in body and "0 to 8" not in body


def test_labels_of_a_front_are_within_it(computed: Any) -> None:
    """Also where all cost the same, and no two numbers lie on one another."""
    (table,) = tables_of(list(computed[2].values()))
    lines = tuple(
        replace(line, entry=with_data(line.entry, lambda data: data["cost"].update(device_hours=7.7e-5)))
        for line in table.lines
    )
    (figure,) = fronts(replace(table, lines=lines), lambda line: "page.html")
    for at, label in re.findall(r'x="([-\d.]+)" y="276" text-anchor="middle">([^<]*)<', figure):
        half = 13 * len(label) / 2  # of a letter on a phone, in the figure's pixels
        assert half <= float(at) <= 640 - half, label


def test_a_board_is_served_to_this_machine(site: Path, tmp_path: Path) -> None:
    none = harness("leaderboard", "serve", tmp_path)
    assert none.returncode == 2 and "has no index.html" in none.stderr
    command = [sys.executable, "-m", "harness", "leaderboard", "serve", str(site), "--port", "0"]
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # in the background it is ignored
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=heard, **pipes) as process:  # noqa: PLW1509
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            with urllib.request.urlopen(f"{address}small.csv", timeout=30) as answer:
                assert answer.read() == (site / "small.csv").read_bytes()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0, "this is how it ends"
            assert process.stderr is not None and "interrupted" not in process.stderr.read()
        finally:
            process.terminate()


def test_samples_are_shown_as_text_and_verified(computed: Any) -> None:
    """And an entry without any is not less verified."""
    _, root, entries = computed
    written = [{"prompt": HOSTILE, "texts": {"0": "plain", "10": HOSTILE, "2": "between"}}]
    forged = with_data(entries["keep"], lambda data: data.update(samples=written))
    text = entry_page(None, forged, "small")
    assert HOSTILE not in text and "\u202e" not in text and "document.title=&quot;owned" in text
    heads = re.findall(r'<th scope="col" class="left">(generation \d+)</th>', text)
    assert heads == ["generation 0", "generation 2", "generation 10"]
    found = verified(forged, root)
    assert not found.good and any(line.startswith("samples") for line in found.lines)
    earlier = with_data(entries["keep"], lambda data: data.pop("samples"))
    assert verified(entries["keep"], root).good and verified(earlier, root).good
    with pytest.raises(ValidationError, match="at most 400 characters"):
        with_data(entries["keep"], lambda data: data.update(samples=[{"prompt": "x" * 401, "texts": {}}]))


def test_the_front_is_of_those_that_none_beats(site: Path, computed: Any) -> None:
    """By the numbers of the CSV, for device-hours, and for what a mitigation costs on a clean stream."""
    rows = [row for row in csv.DictReader((site / "small.csv").open()) if row["rank"]]
    points = [(row["entry"], float(row["benefit"]), float(row["device_hours"])) for row in rows]
    best = {
        name
        for name, gain, cost in points
        if not any(g >= gain and c <= cost and (g > gain or c < cost) for _, g, c in points)
    }
    page = (site / "small.html").read_text()
    (figure,) = re.findall(r"<figure>.*?</figure>", page, re.S)
    assert figure.count("<circle") == len(points) and figure.count('class="mean"') == len(best)
    assert set(re.findall(r'<li>\d+: <a href="[^"]*">([^<]*)</a>', figure)) == best
    (table,) = tables_of(list(computed[2].values()))
    costs = dict(zip((line.entry.mitigation for line in table.lines), (0.001, 5.0, 0.5), strict=True))
    lines = tuple(
        replace(line, controls={"clean": aggregate([costs[line.entry.mitigation]] * 5)})
        for line in table.lines
    )
    both = list(fronts(replace(table, lines=lines), lambda line: "page.html"))
    assert len(both) == 2 and "clean cost" in both[1] and "clean cost" not in both[0]
    assert 'middle">0.01</text>' in both[1], "costs that span a factor of 5,000 are on a log scale"
    bundled = [
        replace(line, entry=with_data(line.entry, lambda data: data["cost"].update(device_hours=0.0002)))
        for line in table.lines
    ]
    (alike,) = fronts(replace(table, lines=tuple(bundled)), lambda line: "page.html")
    assert alike == '<p class="note">All ranked entries cost alike: 0.72 device-seconds of all seeds.</p>'


@pytest.mark.parametrize(
    ("hours", "shown"), [(0.0, "0 s"), (0.0001184, "0.426 s"), (0.02, "1.2 min"), (36.5, "36.5 h")]
)
def test_device_time_is_in_the_largest_unit(hours: float, shown: str) -> None:
    assert time_of(hours) == shown


def test_an_interval_that_goes_on_has_an_arrow() -> None:
    """What lies beyond a table's scale is not drawn as if it ended there."""
    scale = Scale(-1.0, 1.0, 6, 174)
    whole, left, away = (interval(*ends, scale) for ends in ((0, -1, 1), (-0.5, -3, 0.5), (5, 4, 6)))
    assert whole.count("<path") == 0 and whole.count("<circle") == 1
    assert left.count("<path") == 1 and 'x1="6.0" x2="132.0"' in left and left.count("<circle") == 1
    assert away.count("<path") == 1 and "M169 5L174 10" in away and "<circle" not in away


def browser(page: str, *flags: str) -> tuple[str, str]:
    """A page as Chromium has it when its scripts have run, and what they have said."""
    if shutil.which("chromium") is None:
        pytest.skip("needs chromium")
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                "chromium",
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--enable-logging=stderr",
                f"--user-data-dir={profile}",
                *flags,
                "--dump-dom",
                page,
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.slow
def test_the_address_sorts_and_filters_in_a_browser(site: Path) -> None:
    rows = list(csv.DictReader((site / "small.csv").open()))
    page = (site / "small.html").as_uri()
    dom, said = browser(f"{page}#sort=rise&order=down")
    assert not said and '<th scope="col" data-key="rise"' in dom and 'aria-sort="descending"' in dom
    names = re.findall(r'data-value="([^"]*)" class="?name"?', dom)
    assert names == [row["entry"] for row in sorted(rows, key=lambda row: -float(row["rise"]))]
    dom, said = browser(f"{page}#filter=keep")
    assert not said and f"1 of {len(rows)} entries" in dom
    dom, said = browser(f"{page}#filter=%E0%A4%A&sort=rise")
    assert not said and 'aria-sort="ascending"' in dom, "what is no address's code is read as it is"
    dom, said = browser((site / "small" / _page(site, "hostile")).as_uri())
    assert not said and "<title>hostile: A &lt;b&gt;small&lt;/b&gt; track</title>" in dom
