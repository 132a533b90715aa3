"""Data that are made of a task: prompts with solutions, in sides that share no prompt, and the checker.

An example is a prompt, filled up in front with spaces to one length, and a completion with the token that
ends it. So prompts of any length are continued together, and what is learned begins at one place.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.components.tasks import TASKS, TaskData
from harness.config.schema import Sample, science
from harness.data.documents import side_by_hash
from harness.data.real import ExternalCorpus, PreparedData, Room, own_examples
from harness.data.text import TextCorpus
from harness.data.tokenizers import END_OF_TEXT, TOKENIZER
from harness.errors import DataError, InputError
from harness.files import write_json
from harness.metrics import TASK_VERSION
from harness.records import Examples
from harness.registry import named
from harness.science import Prompts
from harness.tasks import Checker, Problem, Verdict
from harness.terminal import shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VERSION = 1
"""Version of splitting, filling up and of the tokenizer; part of every key."""
END, FILL = 0, 1
"""Token that ends a completion, and the space."""
SHARES = {"test": 0.2, "validation": 0.1}
"""Of all prompts, the shares that are on these sides; the rest is for training."""
NOT_STORED = ("num_examples", "reserve", "resample")
"""Fields that decide how much of the prepared folder is used, not what is in it."""
MAX_FRUITLESS = 20_000
"""After so many problems in a row that no side needs there are too few different ones."""


def _problems(config: TaskData) -> Iterator[Problem]:
    """The problems of a task.

    Raises:
        DataError: One does not fit, or the package that makes them fails.
    """
    package = TASKS.loaded[config.task.kind].package
    try:
        for problem in named(TASKS[config.task.kind].problems)(config.task):
            _check_problem(config.task.kind, problem, config.has_solutions)
            _check_fits(config, problem)
            yield problem
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        if not package:
            raise
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"data.task: {config.task.kind} ({package}) fails to make problems: {what}") from None


def side_of(prompt: str) -> str:
    """The side of a prompt, a function of its text alone: so no prompt is on two."""
    return side_by_hash(prompt.encode(), SHARES["test"], SHARES["validation"])


def collect(config: TaskData) -> dict[str, list[Problem]]:
    """The first problems of each side, every prompt once.

    Raises:
        DataError: There are too few different ones, or one does not fit.
    """
    wanted = {"train": config.num_examples + config.reserve}
    wanted |= {"validation": config.validation, "test": config.test}
    found: dict[str, list[Problem]] = {side: [] for side in wanted}
    seen: set[str] = set()
    fruitless = 0
    for problem in _problems(config):
        side = side_of(problem.prompt)
        if problem.prompt in seen or len(found[side]) == wanted[side]:
            fruitless += 1
            if fruitless == MAX_FRUITLESS:
                break
            continue
        fruitless = 0
        seen.add(problem.prompt)
        found[side].append(problem)
        if all(len(found[name]) == wanted[name] for name in wanted):
            return found
    missing = next(name for name in wanted if len(found[name]) < wanted[name])
    field = "num_examples" if missing == "train" else missing
    remedy = "ask for fewer, or for harder ones"
    if not seen:
        remedy = "it has no problem at all: rules that bring no string to an end have none, say"
    raise DataError(
        f"data.{field}: {wanted[missing]} different prompts of the {missing} side are asked for, task "
        f"{config.task.kind} gives {len(found[missing])}; {remedy}"
    )


WORD = re.compile(r"[A-Za-z0-9_]{1,40}")
"""What a skill may be called: columns have its name."""


def _check_problem(kind: str, problem: Any, solved: bool = True) -> None:
    if not isinstance(problem, Problem):
        raise DataError(f"data.task: {kind} gives {shown(problem)}, expected a harness.tasks.Problem")
    if not isinstance(problem.skill, str) or not WORD.fullmatch(problem.skill):
        allowed = "expected letters, digits and _, at most 40"
        raise DataError(f"data.task: {kind} gives the skill {shown(problem.skill)}, {allowed}")
    if isinstance(problem.difficulty, bool) or not isinstance(problem.difficulty, int):
        found = shown(problem.difficulty)
        raise DataError(f"data.task: {kind} gives the difficulty {found}, expected a whole number")
    if solved != (problem.solution is not None):
        allowed = "expected a text (a TaskPlugin with solutions=False has none)"
        if not solved:
            allowed = "expected none, as its TaskPlugin says solutions=False"
        raise DataError(f"data.task: {kind} gives the solution {shown(problem.solution)}, {allowed}")
    for text in (problem.prompt, problem.solution or ""):
        if not isinstance(text, str) or any("\ud800" <= character <= "\udfff" for character in text):
            raise DataError(f"data.task: {kind} gives {shown(text)} as a prompt or solution, expected text")
    if problem.prompt.startswith(" "):
        raise DataError(
            f"data.task: {kind} gives the prompt {shown(problem.prompt)}; it must not begin with a space, "
            "which fills shorter prompts up"
        )


def _check_fits(config: TaskData, problem: Problem) -> None:
    if config.tokenizer is not None:  # which has tokens for every text, and whose lengths are known later
        if not problem.prompt or problem.solution == "":
            raise DataError(f"data.task: {config.task.kind} gives a problem with an empty prompt or solution")
        return
    known = set(_alphabet(config))
    for what, text, room, field in (
        ("prompt", problem.prompt, config.prompt_length, "prompt_tokens"),
        ("solution", problem.solution, config.block_size - config.prompt_length - 1, "completion_tokens"),
    ):
        if text is None:
            continue
        if not text:
            raise DataError(f"data.task: {config.task.kind} gives a problem with an empty {what}")
        if len(text) > room:
            least = len(text) + (field == "completion_tokens")
            raise DataError(
                f"data.{field}: the {what} {shown(text)} has {len(text)} characters, there is room for "
                f"{room}; raise it to at least {least}"
            )
        strange = sorted(set(text) - known)
        if strange:
            raise DataError(
                f"data.task: the {what} {shown(text)} holds {shown(strange[0])}, which is not in the "
                f"alphabet of {config.task.kind}"
            )


def _alphabet(config: TaskData) -> str:
    letters: str = named(TASKS[config.task.kind].alphabet)(config.task)
    return "".join(sorted(set(letters)))


def make_tokenizer(alphabet: str) -> Tokenizer:
    """One token a character; 0 ends a text, 1 is the space that fills up."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    names = [END_OF_TEXT, " ", *(letter for letter in alphabet if letter != " ")]
    tokenizer = Tokenizer(models.WordLevel({name: token for token, name in enumerate(names)}, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def prepared(config: TaskData, room: Room) -> PreparedData:
    """Draw the problems of a task and write them down; keys know them by their content.

    Raises:
        DataError: There are too few, or one does not fit.
    """
    if config.tokenizer is not None:
        found: PreparedData = _chats().prepared_task(config, room)
        return found
    plugin = TASKS.loaded[config.task.kind]
    sides = collect(config)
    lines = [
        f"{side}\0{item.prompt}\0{item.solution or ''}\0{item.skill}\0{item.difficulty}"
        for side, items in sides.items()
        for item in items
    ]
    known = {"task": {**science(config.task), "version": plugin.version}}
    spec = {
        "kind": "task",
        "version": VERSION,
        **{name: value for name, value in science(config).items() if name not in ("source", "task")},
        **known,
        "content": hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32],
        "lengths": [config.prompt_length, config.block_size],
    }
    folder = room.folder(stored(spec), lambda folder: _write(config, sides, folder))
    about = {"source": "task", "task": config.task.kind, "prompts": {s: len(sides[s]) for s in sides}}
    return PreparedData(spec, TaskCorpus(config, folder), about)


def stored(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a spec that decides the prepared folder."""
    return {name: value for name, value in spec.items() if name not in NOT_STORED}


def load(config: TaskData, folder: Path) -> TaskCorpus:
    """What `prepared` wrote: in characters, or in a pretrained model's tokens."""
    return TaskCorpus(config, folder) if config.tokenizer is None else _chats().RenderedCorpus(config, folder)


def _chats() -> Any:
    """Tasks in a pretrained model's tokens."""
    from harness.data import chat

    return chat


def _write(config: TaskData, sides: dict[str, list[Problem]], folder: Path) -> None:
    from safetensors.numpy import save_file

    alphabet = _alphabet(config)
    tokenizer = make_tokenizer(alphabet)
    tokens = tokenizer.get_vocab()
    arrays: dict[str, Any] = {}
    for side, items in sides.items():
        rows = np.zeros((len(items), config.block_size), dtype=np.int32)
        lengths = np.zeros(len(items), dtype=np.int32)
        for row, item in enumerate(items):
            text = item.prompt.rjust(config.prompt_length) + (item.solution or "")
            rows[row, : len(text)] = [tokens[letter] for letter in text]
            lengths[row] = len(text) + (item.solution is not None)  # END is 0, as what lies behind it
        arrays |= {side: rows, f"{side}_lengths": lengths}
    size = tokenizer.get_vocab_size()
    written = [
        row[config.prompt_length : length]
        for row, length in zip(arrays["train"], arrays["train_lengths"], strict=True)
    ]
    counts = np.bincount(np.concatenate(written), minlength=size).astype(np.int64)
    save_file({**arrays, "counts": counts}, folder / "blocks.safetensors")
    tokenizer.save(str(folder / TOKENIZER))
    meta = {
        "bos": END,
        "eos": END,
        "vocab_size": size,
        "prompt_tokens": config.prompt_length,
        "block_size": config.block_size,
        "skills": {side: [item.skill for item in items] for side, items in sides.items()},
        "difficulties": {side: [item.difficulty for item in items] for side, items in sides.items()},
    }
    write_json(folder / "meta.json", meta)


class TaskCorpus(TextCorpus):
    """Prompts with solutions, and the checker of their task.

    Attributes:
        prompt_tokens: Tokens of every prompt, the spaces in front of it included.
    """

    config: TaskData  # type: ignore[assignment]
    prompted, counted = True, False

    def __init__(self, config: TaskData, folder: Path) -> None:
        """Read the examples.

        Args:
            config: The section.
            folder: What `prepared` wrote.
        """
        super().__init__(config, folder)  # type: ignore[arg-type]
        self.prompt_tokens = int(self.meta["prompt_tokens"])
        self.marks = {
            "prompt": "real_prefix",
            "prompt_tokens": self.prompt_tokens,
            "keep_prompt": True,
            "length": "natural",
            "noted": True,
        }

    @property
    def task(self) -> TaskCorpus:  # type: ignore[override]
        """These data, which are those of a task."""
        return self

    @property
    def repeated(self) -> int:
        """Training examples whose prompt another one before them has; a task draws none twice."""
        return 0

    def continued(self, sample: Sample, generations: int) -> Prompts:
        """Real prompts, with ``fresh_prompts`` such as no generation has seen.

        Raises:
            DataError: There are not as many as the generations answer.
        """
        if not sample.fresh_prompts:
            return "real"
        if self.repeated:
            raise DataError(
                f"learner.sample.fresh_prompts: {self.repeated} training examples have a prompt that others "
                "have too, and each prompt is to be answered once; leave one row of each prompt"
            )
        n = self.num_examples
        needed = n * (generations + 1)
        if self.supply - n < needed:
            found, remedy = self.config.more
            raise DataError(
                f"{found} {self.supply - n}, and with learner.sample.fresh_prompts generations 0 to "
                f"{generations} answer {n} prompts each; {remedy.format(needed)}"
            )
        return "fresh"

    @property
    def filler(self) -> int:
        """The token that prompts are filled up with, whether a model sees it or not."""
        return FILL if self.fill is None else self.fill

    @property
    def end(self) -> int:
        """The token that ends a completion."""
        return END

    @property
    def has_truth(self) -> bool:
        """Whether something knows which completions are right."""
        return True

    def _side(self, side: str) -> Examples:
        return Examples(self._blocks[side], self._blocks[f"{side}_lengths"])

    @property
    def running_text(self) -> list[npt.NDArray[np.int32]]:
        """Every training prompt with its solution, by itself."""
        return list(self._side("train").rows())

    def real(self, seed: int, count: int) -> Examples:
        """The first ``count`` training prompts with their solutions; see `TextCorpus`."""
        return self._side("train").take(own_examples(self.config, seed, self.supply, count))

    @property
    def validation(self) -> Examples:
        """Validation prompts with their solutions."""
        return self._side("validation")

    @property
    def test(self) -> Examples:
        """Test prompts with their solutions."""
        return self._side("test")

    def about_test(self, count: int) -> tuple[list[str], list[int]]:
        """Skill and difficulty of the first test prompts."""
        return self.meta["skills"]["test"][:count], self.meta["difficulties"]["test"][:count]

    @property
    def metrics(self) -> Mapping[str, int]:
        """Those of test prompts' completions."""
        return {"task": TASK_VERSION, **super().metrics}

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest training solution; of the room where there are no solutions."""
        solved = int(self._blocks["train_lengths"].max()) - self.prompt_tokens
        return solved if solved > 0 else int(self.config.block_size) - self.prompt_tokens

    @cached_property
    def checker(self) -> Checker:
        """The task's checker."""
        return Checker(self.config.task)

    @cached_property
    def _letters(self) -> list[str]:
        names = {token: name for name, token in self.tokenizer.get_vocab().items()}
        return [names[token] for token in range(len(names))]

    def prompts(self, examples: Examples) -> list[str]:
        """The prompts of examples, without the spaces in front."""
        return [self._text(row[: self.prompt_tokens]).lstrip(" ") for row in examples.values]

    def completions(self, examples: Examples) -> list[str | None]:
        """What stands behind the prompts of examples; None where it is not ended."""
        found: list[str | None] = []
        for row, length in zip(examples.values, examples.lengths, strict=True):
            ended = length > self.prompt_tokens and row[length - 1] == self.end
            found.append(self._text(row[self.prompt_tokens : length - 1]) if ended else None)
        return found

    def _text(self, tokens: npt.NDArray[np.integer[Any]]) -> str:
        return "".join(self._letters[int(token)] for token in tokens)

    def verdicts(self, examples: Examples) -> list[Verdict]:
        """What the checker says of examples; a completion that is not ended is wrong."""
        completions = self.completions(examples)
        ended = [place for place, text in enumerate(completions) if text is not None]
        prompts = self.prompts(examples)
        found = [Verdict(False, False)] * len(completions)
        checked = self.checker(
            [prompts[place] for place in ended], [completions[place] or "" for place in ended]
        )
        for place, verdict in zip(ended, checked, strict=True):
            found[place] = verdict
        return found

    def right(self, examples: Examples) -> npt.NDArray[np.bool_] | None:
        """Which completions are right, every step of them."""
        return np.array([verdict.correct for verdict in self.verdicts(examples)], dtype=bool)

    def troubles(self, examples: Examples, votes: bool = False) -> Mapping[str, int]:
        """Of a package's checker, or of ``data.extract``; the harness's own checkers have none."""
        if not self.may_fail:
            return {}
        found: list[str] = [verdict.trouble for verdict in self.verdicts(examples)]
        if votes:
            texts = self.completions(examples)
            found = [
                trouble or ("" if text is None else self.checker.answer(text).trouble)
                for trouble, text in zip(found, texts, strict=True)
            ]
        return {trouble: count for trouble, count in sorted(Counter(found).items()) if trouble}

    @property
    def may_fail(self) -> bool:
        """Whether what says which completions are right is not the harness's own."""
        return bool(TASKS.loaded[self.config.task.kind].package)

    def written(self, examples: Examples) -> Examples:
        """The completions alone."""
        start = self.prompt_tokens
        return Examples(examples.values[:, start:], np.maximum(examples.lengths - np.int32(start), 0))

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the spaces in front.

        Raises:
            DataError: It is too long, or holds other characters than the task.
        """
        strange = sorted(set(text) - set(self._letters[1:]))
        if strange or len(text) > self.prompt_tokens:
            reason = (
                f"holds {shown(strange[0])}, which is not in the alphabet of the task"
                if strange
                else f"has {len(text)} characters, the longest prompt {self.prompt_tokens}"
            )
            raise DataError(f"evaluate.prompts: {shown(text)} {reason}")
        tokens = self.tokenizer.get_vocab()
        return [tokens[letter] for letter in text.rjust(self.prompt_tokens)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, without the spaces in front."""
        return super().decode(tokens).lstrip(" ")

    def external(
        self, source: str, packed: Callable[[str], Examples | None] = lambda _: None
    ) -> ExternalCorpus:
        """Refuse a fixed corpus: this task has none.

        Raises:
            DataError: Always.
        """
        raise DataError("regime.source: a fixed corpus is text; the data are prompts with completions")

    def other(self, name: str, source: str) -> ExternalCorpus:
        """Refuse another text: nothing but this task's characters can be read.

        Raises:
            DataError: Always.
        """
        raise DataError(
            f"evaluate.others.{name}: is text, and the tokens of this task are its characters; with "
            "data.tokenizer it has those of a pretrained model, which may forget text"
        )
