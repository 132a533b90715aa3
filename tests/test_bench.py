"""scripts/bench: what a table says, when --check fails, and how much a model multiplies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from benchmarks import commands, models, table
from benchmarks.shape import Shape, matrix_flop
from benchmarks.table import Figure
from benchmarks.turns import Contestant, Left

MACHINE = "A processor, 1 thread"


def figure(share=0.5, what="fits", model="tiny", who="harness", ratio=None):
    return Figure(what, model, "fp32", who, "tokens/s", 12345.0, 12000.0, 13000.0, share, ratio)


def page(figures, machine=MACHINE, before="# Page\n"):
    return table.replaced(before, machine, figures, "Written by hand.")


def test_a_table_is_read_as_it_was_written():
    small = Figure("starts", "harness --help", "", "harness", "s", 0.123, 0.1, 0.25, measured="today")
    written = [figure(0.512), figure(0.25, who="torch loop", ratio=1.07), small]
    assert table.parse(page(written)) == {MACHINE: written}


def test_new_figures_replace_those_measured_together():
    text = page([figure(0.5), figure(0.4, who="Trainer", ratio=2.0), figure(0.6, what="samples")])
    text = page([figure(0.7)], machine="Another, 2 threads", before=text)
    text = page([figure(0.3)], before=text + "\nThe end.\n")
    found = table.parse(text)
    assert [(row.what, row.who, row.share) for row in found[MACHINE]] == [
        ("fits", "harness", 0.3),
        ("samples", "harness", 0.6),
    ]
    assert [row.share for row in found["Another, 2 threads"]] == [0.7]
    assert text.startswith("# Page\n") and text.rstrip().endswith("The end.")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (table.END, "", "has no end"),
        ("| 12,345 |", "| twelve |", "line 10: could not convert"),
        ("| tiny |", "|", "line 10: 10 cells, 11"),
        (table.END, f"<!-- bench: {MACHINE} -->", "begins before"),
        (f"<!-- bench: {MACHINE} -->", "", "has not begun"),
    ],
)
def test_a_table_that_cannot_be_read_is_told(old, new, message):
    text = page([figure()])
    assert old in text
    with pytest.raises(table.TableError, match=message):
        table.parse(text.replace(old, new))


@pytest.mark.parametrize(
    ("before", "now", "falls"),
    [
        (0.80, 0.81, False),
        (0.80, 0.681, False),
        (0.80, 0.679, True),
        (0.20, 0.171, False),
        (0.20, 0.169, True),
    ],
)
def test_a_share_may_fall_by_fifteen_per_cent_of_itself(before, now, falls):
    lines, compared = table.fallen([figure(now)], table.parse(page([figure(before)]))[MACHINE])
    assert (bool(lines), compared) == (falls, 1)


def test_only_the_harness_is_checked_against_its_own_row():
    known = [figure(0.8), figure(0.8, who="Trainer"), figure(0.9, model="small")]
    now = [figure(0.8), figure(0.1, who="Trainer"), figure(0.1, what="samples")]
    assert table.fallen(now, known) == ([], 1)


def test_nothing_to_compare_is_an_error_and_not_a_pass():
    with pytest.raises(table.TableError, match="none of what was measured"):
        table.fallen([figure(model="small")], [figure(model="tiny")])


def gpt2(**sizes):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        return GPT2LMHeadModel(GPT2Config(n_positions=16, **sizes))


def test_flop_of_a_token_by_hand():
    model = gpt2(vocab_size=10, n_embd=4, n_layer=2, n_head=2)
    # A layer: queries, keys, values 4 x 12, output 4 x 4, feed-forward 4 x 16 and 16 x 4: together 192
    # weights. The head, tied to the embedding: 4 x 10 = 40. Forward 2 x (2 x 192 + 40) = 848. Attention over
    # 8 tokens, a layer: 2 x 8 x 4 for the scores and as many for the values: 128; two layers 256.
    assert matrix_flop(model, 8, backward=False) == 848 + 256
    assert matrix_flop(model, 8, backward=True) == 3 * (848 + 256)


def test_flop_depend_on_neither_positions_nor_a_tied_head():
    tied = gpt2(vocab_size=10, n_embd=4, n_layer=1, n_head=2)
    free = gpt2(vocab_size=10, n_embd=4, n_layer=1, n_head=2, tie_word_embeddings=False)
    assert matrix_flop(tied, 8, True) == matrix_flop(free, 8, True)


def test_shares_and_ratios_are_those_of_each_round():
    comparison = models.Comparison("matrix_product", "harness_fit", ("plain_fit",))
    # A machine that is half as fast in the second round, and a third as fast in the third: the share stays.
    seconds = {
        "matrix_product": [1.0, 2.0, 3.0],
        "harness_fit": [2.0, 4.0, 6.0],
        "plain_fit": [4.0, 8.0, 12.0],
    }
    work = {"matrix_product": 600e9, "harness_fit": 50.0, "plain_fit": 50.0}
    found = models.figures_of("fits", Shape(), comparison, seconds, work, flop=6e9)
    limit, harness, plain = found
    # 600 GFLOP/s are 100 tokens/s at 6 GFLOP a token; the harness makes 25 of them, the loop 12.5.
    assert (limit.unit, limit.median, limit.share) == ("GFLOP/s", 300.0, None)
    assert (harness.median, harness.share, harness.ratio) == (12.5, 0.25, None)
    assert (plain.share, plain.ratio) == (0.125, 2.0)


@pytest.mark.slow
def test_a_contestant_that_cannot_be_set_up_says_why():
    contestant = Contestant("no_such", Shape())
    with pytest.raises(Left, match="no_such"):
        contestant.about()
    contestant.close()


def bench(*arguments):
    command = [sys.executable, str(SCRIPTS / "bench"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report that CI prints of its machine, which is kept in the file that HARNESS_BENCH_REPORT names."""
    done = bench("fits", "samples", "scores", "--short", "--cpu-time", "--json")
    assert done.returncode == 0, done.stderr
    place = os.environ.get("HARNESS_BENCH_REPORT") or tmp_path_factory.mktemp("report") / "figures.json"
    Path(place).write_text(done.stdout)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("what", ["fits", "samples", "scores"])
def test_the_harness_and_its_limit_are_measured(report, what):
    """Real turns, whatever they need: no one has to read a report to see that a part of it has gone."""
    figures = [Figure(**row) for row in json.loads(Path(report).read_text())["figures"]]
    limit, harness = (figure for figure in figures if figure.what == what)
    assert limit.who.endswith("(limit)") and harness.who == "harness" and limit.share is None
    assert 0 < harness.lowest <= harness.median <= harness.highest and harness.share > 0
    assert f"{what:7} tiny   bf16 harness " in bench("--read", report).stdout


@pytest.mark.slow
def test_absent_programs_are_left_out(monkeypatch):
    """CTranslate2 is in no environment of the harness."""
    taking = models.Comparison("matrix_product", "matrix_product", ("ctranslate2",))
    monkeypatch.setitem(models.COMPARISONS, "samples", taking)
    found = models.measure("samples", Shape(), rounds=1)
    assert {figure.who for figure in found.figures} == {"matrix product (limit)"}
    assert list(found.left_out) == ["samples, CTranslate2"]
    assert "No module named 'ctranslate2'" in found.left_out["samples, CTranslate2"]


def test_figures_of_a_file_are_written_and_checked(tmp_path):
    """The codes of --check: 0 as before, 1 where a share fell, 2 where there is nothing to compare with."""
    path, place = tmp_path / "page.md", tmp_path / "figures.json"
    path.write_text("# Page\n")

    def told(share, machine=MACHINE):
        about = {"machine": machine, "versions": {"torch": "1"}, "command": ["scripts/bench", "fits"]}
        place.write_text(json.dumps({**about, "figures": [figure(share).as_dict()]}))

    told(0.5)
    assert bench("--read", place, "--page", path, "--write").returncode == 0
    assert [row.share for row in table.parse(path.read_text())[MACHINE]] == [0.5]
    assert bench("--read", place, "--page", path, "--check").returncode == 0
    told(0.4)
    fallen = bench("--read", place, "--page", path, "--check")
    assert (
        fallen.returncode == 1 and "fits tiny fp32: 40.0 % of the limit, 50.0 % in the table" in fallen.stdout
    )
    told(0.5, machine="Another")
    missing = bench("--read", place, "--page", path, "--check")
    assert missing.returncode == 2 and f"no table of Another; there are: {MACHINE}" in missing.stderr
    place.write_text("{}")
    assert "not a document of scripts/bench" in bench("--read", place, "--page", path, "--check").stderr


def test_the_grid_is_compared_within_its_rounds():
    taken = {
        ("harness", "fp32"): [(100.0, 150.0), (200.0, 160.0), (400.0, 170.0)],
        ("Ray Tune, Trainer, generate", "fp32"): [(150.0, 300.0), (300.0, 320.0), (600.0, 340.0)],
        ("harness", "bf16"): [(50.0, 75.0), (100.0, 80.0), (200.0, 85.0)],
    }
    ratios = {one.key[2:]: one.median for one in commands.grid_figures("a grid", taken) if one.unit[0] == "x"}
    says = "Ray Tune, Trainer, generate in fp32 : harness in"
    assert ratios == {
        ("fp32", f"{says} fp32", "x, by s"): 1.5,
        ("bf16", f"{says} bf16", "x, by s"): 3.0,
        ("fp32", f"{says} fp32", "x, by CPU s"): 2.0,
        ("bf16", f"{says} bf16", "x, by CPU s"): 4.0,
    }


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
while open(f"/proc/{child.pid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z":
    time.sleep(0.05)
"""
CHILD = """
import time
while time.process_time() < 2:
    pass
"""


@pytest.mark.slow
def test_cpu_seconds_of_processes_not_waited_for_count(tmp_path):
    took, cpu, _ = commands._run([sys.executable, "-c", PARENT, CHILD], tmp_path)
    assert 1.0 < cpu < 10.0 and took >= 2.0


def test_other_work_is_another_row():
    assert Shape().label == Shape(steps=9, threads=2).label == "tiny"
    assert Shape(model="small", vocab=512, batch=16, micro_batch=16).label == "small, vocab 512, batch 16"
    assert Shape(micro_batch=8).label == "tiny, micro_batch 8"


def test_what_cannot_be_asked_for_is_refused():
    for wrong in (
        ["fits", "--rounds", "0"],
        ["fits", "--micro-batch", "5"],
        ["fits", "--models", "tina"],
        ["fits", "--models", "tiny", "--context", "128"],
        ["chains", "--json"],
        ["fits", "--short", "--write"],
        ["fit"],
        [],
    ):
        done = bench(*wrong)
        assert done.returncode == 2 and "Traceback" not in done.stderr, (wrong, done.stderr)
