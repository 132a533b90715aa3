"""Tasks: their sections and where their code is, and data that are made of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Union

from pydantic import Field, field_validator, model_validator

from harness.components.text import ASKED as OF_TEXT
from harness.components.text import PretrainedTokenizer, tokenizer_items
from harness.registry import DataKind, TaskPlugin, gather
from harness.section import DataSection, HubItem, Place, PositiveInt, Section, since
from harness.terminal import shown

Difficulties = Annotated[tuple[Annotated[int, Field(ge=1, le=12)], ...], Field(min_length=1)]


class Boolean(Section):
    """Expressions of truth values, evaluated step by step: ``~(T&F)=~F=T``."""

    kind: Literal["boolean"]
    difficulty: Difficulties = since((2, 3, 4))
    """Operations in an expression; problems have one after another of these."""

    @property
    def lengths(self) -> tuple[int, int]:
        """The most characters of a prompt and of a completion."""
        return _expression_lengths(max(self.difficulty), 1)


class Arithmetic(Section):
    """Calculations in whole numbers, carried out step by step: ``(3+4)*2=7*2=4`` modulo 10."""

    kind: Literal["arithmetic"]
    difficulty: Difficulties = since((1, 2, 3))
    """Operations in a calculation; problems have one after another of these."""
    modulus: Annotated[int, Field(ge=2, le=10)] | None = since(10)
    """Every result is taken modulo this, so that it has one digit; null: whole numbers of any size."""
    operators: Annotated[str, Field(pattern=r"^[-+*]{1,3}$")] = since("+-*")
    """Which operations there are."""

    @field_validator("operators")
    @classmethod
    def _once(cls, value: str) -> str:
        if len(set(value)) < len(value):
            raise ValueError(f"found {value}, which names one twice")
        return value

    @property
    def lengths(self) -> tuple[int, int]:
        """The most characters of a prompt and of a completion."""
        most = max(self.difficulty)
        return _expression_lengths(most, 1 if self.modulus else most + 2)  # 9 ** (most + 1), and a sign


class Rewriting(Section):
    """Strings that rules bring to a normal form, step by step: ``abbca>aaca>bca``."""

    kind: Literal["rewriting"]
    difficulty: Difficulties = since((5, 6, 7))
    """Letters of a string; problems have one after another of these."""
    rules: Annotated[
        tuple[
            tuple[
                Annotated[str, Field(pattern=r"^[a-z]{1,4}$")], Annotated[str, Field(pattern=r"^[a-z]{0,4}$")]
            ],
            ...,
        ],
        Field(min_length=1),
    ] = since((("aa", "b"), ("bb", "a"), ("ab", ""), ("ba", ""), ("cc", "c")))
    """What may be replaced by what, anywhere. With these, every order of steps comes to one end."""

    @model_validator(mode="after")
    def _ends(self) -> Rewriting:
        for left, right in self.rules:
            if left in right:
                raise ValueError(f"rules: {left} becomes {right}, which holds {left} again, so it never ends")
        return self

    @property
    def lengths(self) -> tuple[int, int]:
        """The most characters of a prompt and of a completion.

        Where every rule shortens, states lose a letter a step; elsewhere there may be as many steps as
        sorting by neighbours takes, and strings that need more are not asked about.
        """
        longest = max(self.difficulty)
        shortens = all(len(right) < len(left) for left, right in self.rules)
        steps = longest * (longest - 1) // 2
        return longest + 1, steps + longest if shortens else steps * (longest + 1)


def _expression_lengths(operations: int, width: int) -> tuple[int, int]:
    """Characters of a prompt and of a completion, with so many operations and literals so wide.

    An expression with k operations has at most k + 1 literals, k operators and k - 1 pairs of brackets; its
    solution has those with fewer operations, and a character behind each.
    """

    def size(k: int, literal: int) -> int:
        return (k + 1) * literal + k + 2 * max(0, k - 1)

    return size(operations, 1) + 1, sum(size(k, width) + 1 for k in range(operations))


_CODE = "harness.tasks.derivations"
COMPONENTS: Mapping[str, TaskPlugin] = {
    kind: TaskPlugin(
        section,
        1,
        problems=f"{_CODE}:{kind}_problems",
        check=f"{_CODE}:check_{kind}",
        alphabet=f"{_CODE}:alphabet_of_{kind}",
        answer=f"{_CODE}:answer_of_{'rewriting' if kind == 'rewriting' else 'expression'}",
        lengths=lambda section: section.lengths,
    )
    for kind, section in (("boolean", Boolean), ("arithmetic", Arithmetic), ("rewriting", Rewriting))
}
TASKS = gather("tasks", TaskPlugin, COMPONENTS)

if TYPE_CHECKING:
    Task = Boolean | Arithmetic | Rewriting
else:
    _SECTIONS = Union[tuple(TASKS[kind].section for kind in TASKS)]  # noqa: UP007 (made of a list)
    Task = Annotated[_SECTIONS, Field(discriminator="kind")]


MAX_PROBLEMS = 10_000_000


class Prompted(DataSection):
    """Data whose examples are a prompt and a completion, which alone is learned.

    Attributes:
        named: What says in a study that the data are these.
        more: What of the section says how many prompts there are besides ``num_examples``, and how a study
            gets more of them.
    """

    prompted: ClassVar[bool] = True
    named: ClassVar[str]
    more: ClassVar[tuple[str, str]]

    @property
    @abstractmethod
    def prompt_length(self) -> int:
        """Tokens of every prompt, what fills it up included."""

    @property
    @abstractmethod
    def block_size(self) -> int:
        """Tokens of an example: its prompt, and room for a completion with the token that ends it."""

    @property
    def prepend_bos(self) -> bool:
        """Nothing is in front of a prompt: its first token is never predicted."""
        return False

    @property
    def has_truth(self) -> bool:
        """Whether something knows which completions are right."""
        return True

    @property
    def has_solutions(self) -> bool:
        """Whether its prompts have completions to learn from."""
        return True

    @property
    def filled(self) -> bool:
        """Whether what fills prompts up is hidden from the model."""
        return True

    def longest(self, written: int) -> int:
        """Tokens of the longest sequence that a model reads: an example, whatever is said of sampling."""
        return self.block_size


ASKED = (*OF_TEXT, "prompt_length", "has_truth", "has_solutions", "named", "more")
"""What a language model asks of a section of prompts."""


class TaskData(Prompted):
    """Prompts with solutions and an exact checker, from an endless generator or a package."""

    named: ClassVar[str] = "data.source: task"
    more: ClassVar[tuple[str, str]] = "data.reserve: found", "set at least {}"
    source: Literal["task"]
    task: Task
    """``{kind: boolean}``, ``arithmetic``, ``rewriting``, or a kind of a package."""
    num_examples: Annotated[int, Field(ge=1, le=MAX_PROBLEMS)] = since(1000)
    """Prompts with their solutions that generation 0 trains on; every generation is asked the same
    prompts."""
    reserve: Annotated[int, Field(ge=0, le=MAX_PROBLEMS)] = since(0)
    """Further prompts with solutions: of ``resample``, and the reservoir of ``fresh_real``."""
    validation: PositiveInt = since(100)
    """Prompts of the validation side."""
    test: PositiveInt = since(200)
    """Prompts of the test side."""
    prompt_tokens: PositiveInt | None = since(None)
    """Tokens (characters) there is room for in a prompt, and spaces in front of shorter ones; as many as the
    task's longest when null."""
    completion_tokens: Annotated[int, Field(ge=2, le=100_000)] | None = since(None)
    """Tokens (characters) there is room for in a completion, the token that ends it included; as many as the
    task's longest when null."""
    resample: bool = since(False)
    """Every seed trains on its own ``num_examples`` of the prompts, drawn at random; otherwise all on the
    same ones."""
    tokenizer: PretrainedTokenizer | None = since(None)
    """A pretrained model's, which writes prompts as a user's messages. Null: tokens are characters."""
    template: Place = since("tokenizer")
    """With a tokenizer: how a prompt is written, by the ``tokenizer``'s chat template, by that of a file
    (Jinja), or ``none``: as it is."""
    system: str | None = since(None)
    """With a tokenizer: system message in front of every prompt."""
    instruction: str = since("{prompt}")
    """With a tokenizer: the user's message, with the prompt in the place of ``{prompt}``."""

    @model_validator(mode="after")
    def _rendered(self) -> TaskData:
        if "{prompt}" not in self.instruction:
            raise ValueError(
                f"instruction: found {shown(self.instruction)}, expected a text with {{prompt}} in it"
            )
        given = [name for name in ("template", "system", "instruction") if name in self.model_fields_set]
        if self.tokenizer is None and given:
            raise ValueError(f"{given[0]}: needs tokenizer: {{kind: pretrained, name: ...}}")
        if self.template == "none" and self.system is not None:
            raise ValueError("system: is not used with template: none, which has no place for it")
        missing = [name for name in ("prompt_tokens", "completion_tokens") if getattr(self, name) is None]
        if self.tokenizer is not None and missing:
            raise ValueError(
                f"with a tokenizer the task does not say how long its texts are; give {missing[0]}"
            )
        return self

    @model_validator(mode="after")
    def _lengths(self) -> TaskData:
        missing = [name for name in ("prompt_tokens", "completion_tokens") if getattr(self, name) is None]
        if missing and self._bounds is None:
            raise ValueError(f"task {self.task.kind} does not say how long its texts are; give {missing[0]}")
        return self

    @property
    def _bounds(self) -> tuple[int, int] | None:
        return TASKS[self.task.kind].lengths(self.task)

    @property
    def prompt_length(self) -> int:
        """Tokens of every prompt, spaces included."""
        return self.prompt_tokens or (self._bounds or (0, 0))[0]

    @property
    def block_size(self) -> int:
        """Tokens of an example: its prompt, and room for a completion with the token that ends it."""
        return self.prompt_length + (self.completion_tokens or (self._bounds or (0, 0))[1] + 1)

    @property
    def has_solutions(self) -> bool:
        """Whether the task writes solutions beside its problems."""
        return TASKS[self.task.kind].solutions

    @property
    def filled(self) -> bool:
        """Characters are filled up with spaces, which the model reads."""
        return self.tokenizer is not None

    @property
    def hub_items(self) -> list[HubItem]:
        """What it needs of the hub."""
        return tokenizer_items(self.tokenizer)


class TaskMeasure(Section):
    """How completions of test prompts are measured."""

    prompts: PositiveInt = since(100)
    """Test prompts that are answered: the first so many. Left open, all where there are fewer."""
    completions: Annotated[int, Field(ge=1, le=10_000)] = since(8)
    """Completions of each."""
    pass_k: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = since((4, 8))
    """Numbers k of completions for ``task/pass_<k>``, besides 1."""
    pretrained: bool = since(False)
    """Completions, and other texts (``evaluate.others``), are scored by the pretrained model too that
    generation 0 began with: ``task/kl_pretrained`` and ``other/<name>/forgotten_pretrained``."""

    @model_validator(mode="after")
    def _possible(self) -> TaskMeasure:
        if max(self.pass_k) > self.completions:
            raise ValueError(
                f"pass_k: found {max(self.pass_k)}, more than the {self.completions} completions of a prompt"
            )
        return self


KIND = DataKind(
    section=TaskData,
    prepare="harness.data.task:prepared",
    load="harness.data.task:load",
    sources=("task",),
    like="text",
    asked=ASKED,
    places=("template", "tokenizer.name", "tokenizer.revision"),
    example={"source": "task", "task": {"kind": "boolean"}, "num_examples": 1000},
)
