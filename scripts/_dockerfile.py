"""Read a Dockerfile into stages: for the test that lints ours, and for `docker-steps`, which runs it without docker."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field

KNOWN = frozenset(
    "ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL".split()  # noqa: SIM905  a list reads no better
    + "ONBUILD RUN SHELL STOPSIGNAL USER VOLUME WORKDIR".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Step:
    """One instruction: its word in capitals, what follows (continuation lines joined), and its first line's number."""

    word: str
    text: str
    line: int

    @property
    def parts(self) -> list[str]:
        """The words of an exec form (`["a", "b"]`), or of the text as a shell splits it."""
        return [str(part) for part in json.loads(self.text)] if self.is_exec else shlex.split(self.text)

    @property
    def is_exec(self) -> bool:
        """Whether it is written as a JSON list, so that no shell stands between the signal and the program."""
        return self.text.startswith("[")

    @property
    def flags(self) -> dict[str, str]:
        """Leading `--name=value` words."""
        found = {}
        for part in [] if self.is_exec else self.parts:
            if not part.startswith("--"):
                break
            name, _, value = part[2:].partition("=")
            found[name] = value
        return found

    @property
    def operands(self) -> list[str]:
        """The words after the flags."""
        return self.parts[0 if self.is_exec else len(self.flags) :]


@dataclass
class Stage:
    """From one FROM to the next."""

    name: str
    base: str
    steps: list[Step] = field(default_factory=list)

    def of(self, word: str) -> list[Step]:
        """Its instructions of one kind."""
        return [step for step in self.steps if step.word == word]


def read(text: str) -> list[Stage]:
    """The stages, in order. Raises `ValueError` naming the line on anything that is not a known instruction."""
    stages: list[Stage] = []
    pending, first = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not pending:
            first = number
        if line.rstrip().endswith("\\"):
            pending += line.rstrip()[:-1].strip() + " "
            continue
        word, _, rest = (pending + line.strip()).partition(" ")
        pending = ""
        step = Step(word.upper(), rest.strip(), first)
        if step.word not in KNOWN:
            raise ValueError(f"line {first}: no such instruction: {word}")
        if step.word == "FROM":
            base, *named = step.operands
            stages.append(Stage(named[1] if len(named) == 2 else str(len(stages)), base))
        elif not stages and step.word != "ARG":
            raise ValueError(f"line {first}: {step.word} before FROM")
        elif stages:
            stages[-1].steps.append(step)
    if pending:
        raise ValueError(f"line {first}: ends in a continuation")
    return stages
