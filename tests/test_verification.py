"""What a verification leaves beside an entry, and what the board makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from boards import compute, with_data
from typer.testing import CliRunner

from harness import study
from harness.board.build import build_site
from harness.board.checked import Verification, badges, verification
from harness.board.entry import Entry, write_entry
from harness.board.immutable import read_immutable, write_beside, write_immutable
from harness.board.verify import EntryVerdict
from harness.cli.app import app
from harness.errors import InputError


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Entry]]:
    return compute(tmp_path_factory.mktemp("board"))


def command(*words: Any) -> Any:
    import harness.cli  # noqa: F401  (it registers the commands)

    return CliRunner().invoke(app, [str(word) for word in words])


def records(folder: Path) -> list[Verification]:
    return [read_immutable(p, Verification, "verification") for p in folder.rglob("*.verification.json")]


def lines_of(folder: Path) -> dict[str, str]:
    """Notes by entry, as the board's JSON has them."""
    found = json.loads((folder / "board.json").read_text())["tracks"]["small"]["entries"]
    return {row["entry"]: row["notes"] for row in found}


def test_a_verification_is_kept_and_shown(
    computed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, root, entries = computed
    reads, resolve = list[Any](), study._resolve
    monkeypatch.setattr(study, "_resolve", lambda *given: reads.append(given) or resolve(*given))
    added = command("leaderboard", "add", config, "--root", root, "--to", tmp_path)
    assert added.exit_code == 0, added.output
    assert len(reads) == 1, "a study is prepared once"
    place = tmp_path / entries["keep"].name
    done = command("leaderboard", "verify", place, "--root", root)
    assert done.exit_code == 0, done.output
    assert len(reads) == 2
    (found,) = records(tmp_path)
    assert found.is_of(entries["keep"]) and found.kind == "artifacts" and found.good and found.seed is None
    assert found.verdict.startswith("verified: all numbers follow") and found.versions["harness"]
    assert str(place.parent / Path(found.name).name) in done.output and found.host and found.device
    list(build_site(tmp_path, tmp_path))
    assert f"verified {found.time[:10]}" in lines_of(tmp_path)["keep"]
    assert "verified" not in lines_of(tmp_path)["accumulate"]
    page = place.with_suffix(".html").read_text()
    assert found.host in page and "verified: all numbers follow" in page
    assert found.badge in (tmp_path / "small.html").read_text()


def test_a_failed_verification_is_kept_and_shown_too(computed: Any, tmp_path: Path) -> None:
    _, root, entries = computed
    better = with_data(
        entries["keep"], lambda d: d["seeds"]["1"]["metrics"]["discrete/outcomes"].__setitem__(-1, 12.0)
    )
    place = write_entry(better, tmp_path)
    done = command("leaderboard", "verify", place, "--root", root)
    assert done.exit_code == 1, done.output
    list(build_site(tmp_path, tmp_path))
    (found,) = records(tmp_path)
    assert not found.good and "seeds.1.metrics.discrete/outcomes.6" in found.lines[0]
    assert f"verification failed {found.time[:10]}" in lines_of(tmp_path)["keep"]
    assert "seeds.1.metrics.discrete/outcomes.6" in place.with_suffix(".html").read_text()


def test_a_pattern_of_entries_is_verified_again(computed: Any, tmp_path: Path) -> None:
    """What the first time has left beside them is no entry; one that is bad fails the command."""
    _, root, entries = computed
    places = [write_entry(entries[name], tmp_path) for name in ("keep", "none")]
    for times in (1, 2):
        done = command("leaderboard", "verify", *sorted(places[0].parent.iterdir()), "--root", root)
        assert done.exit_code == 0, done.output
        said = [line for line in done.output.splitlines() if ": verified: all numbers follow" in line]
        assert [line.partition(":")[0] for line in said] == sorted(place.name for place in places)
        assert len(records(tmp_path)) >= 2 and done.output.count("kept in ") == 2, times
    left = sorted(tmp_path.rglob("*.verification.json"))
    none = command("leaderboard", "verify", *left, "--root", root)
    assert isinstance(none.exception, InputError) and "found only verifications" in str(none.exception)
    places[0].write_bytes(places[0].read_bytes() + b" ")
    done = command("leaderboard", "verify", *places, "--root", root)
    assert isinstance(done.exception, InputError) and done.output == "", "nothing was verified before"


def test_a_verification_of_another_content_is_not_shown(computed: Any, tmp_path: Path) -> None:
    entries = computed[2]
    good = verification(entries["keep"], 3, EntryVerdict(True, "replayed: all digits"))
    other = with_data(entries["keep"], lambda data: data.update(experiment="another"))
    write_entry(other, tmp_path)
    write_entry(entries["none"], tmp_path)
    write_immutable(good, tmp_path)
    said = f"left out: {good.name} is of an entry that is not here, or not with this content"
    assert list(build_site(tmp_path, tmp_path)) == [said]
    assert "replayed" not in lines_of(tmp_path)["keep"]
    # a record that names the other entry, with the hash of this one
    data = json.loads(good.content) | {"entry": other.name}
    forged = Verification.model_validate_json(json.dumps(data))
    write_immutable(forged, tmp_path)
    assert len([line for line in build_site(tmp_path, tmp_path) if line.startswith("left out")]) == 2
    assert "replayed" not in lines_of(tmp_path)["keep"]


def test_a_changed_verification_is_none(computed: Any, tmp_path: Path) -> None:
    entry = computed[2]["keep"]
    write_entry(entry, tmp_path)
    bad = verification(entry, 3, EntryVerdict(False, "replayed: seed 3 does NOT agree"))
    place = write_beside(bad, tmp_path / entry.name)
    for content, message in (
        (bad.content.replace(b"false", b"true"), "was changed after it was made: by its content its name is"),
        (bad.content + b" ", "was changed after it was made: it says more"),
        (b"{}", "is no verification: format: Field required"),
        (bad.content.replace(b"T", b" "), "is no verification: time: String should match"),
    ):
        place.write_bytes(content)
        with pytest.raises(InputError, match=message):
            list(build_site(tmp_path, tmp_path))


def test_only_the_same_check_on_a_machine_takes_a_failure_back(computed: Any) -> None:
    entry = computed[2]["keep"]

    def on(day: int, host: str, good: bool, seed: int | None = None) -> Verification:
        data = json.loads(verification(entry, seed, EntryVerdict(good, "said")).content)
        data |= {"host": host, "time": f"2026-11-{day:02}T00:00:00+00:00"}
        return Verification.model_validate_json(json.dumps(data))

    assert badges([]) == []
    assert badges([on(1, "a", False), on(2, "b", True)]) == [
        "verification failed 2026-11-01",
        "verified 2026-11-02",
    ]
    assert badges([on(3, "a", True), on(1, "a", False), on(2, "b", True)]) == ["verified 2026-11-03"]
    assert badges([on(1, "a", True, 3), on(2, "a", False, 4), on(3, "a", True)]) == [
        "replay failed 2026-11-02",
        "replayed 2026-11-01",
        "verified 2026-11-03",
    ]


def test_a_folder_that_cannot_be_written_hides_no_answer(
    computed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, root, entries = computed
    place = write_entry(entries["keep"], tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.board.immutable.write_atomic", full)
    done = command("leaderboard", "verify", place, "--root", root)
    assert done.exit_code == 0 and "verified: all numbers follow" in done.output
    assert f"not kept: {place.parent} cannot be written: No space left on device" in done.output


def test_what_others_have_written_is_no_markup(computed: Any, tmp_path: Path) -> None:
    entry = computed[2]["keep"]
    write_entry(entry, tmp_path)
    hostile = "<script>alert(1)</script>\u202e"
    data = json.loads(verification(entry, None, EntryVerdict(True, hostile, (hostile,))).content)
    data |= {"who": hostile, "host": hostile, "device": hostile, "commit": hostile}
    write_immutable(Verification.model_validate_json(json.dumps(data)), tmp_path)
    list(build_site(tmp_path, tmp_path))
    for page in tmp_path.rglob("*.html"):
        text = page.read_text()
        assert "<script>alert" not in text and "\u202e" not in text, page
