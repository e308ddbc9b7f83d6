"""The protocol linter: which rows of a board may be ranked together, and why others may not."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from spcl.boards.runs import Run
from spcl.configuration.chosen_by import ChosenBy

KEY_LETTERS = 8  # of a digest, for people


def uses_target_labels(run: Run) -> bool:
    """Did labels of the target choose this row's network?"""
    chosen = ChosenBy(objective=run.selection, label_budget=run.label_budget)
    return chosen.reads_target_labels


@dataclass(frozen=True)
class Group:
    """What rows must share to be ranked together, besides benchmark and protocol."""

    eval_size: tuple[int, int]
    classes: tuple[str, ...]
    target: str
    target_fingerprint: str
    sample_ids: str
    target_labels: bool

    @classmethod
    def of(cls, run: Run) -> "Group":
        return cls(
            run.eval_size,
            run.classes,
            run.target,
            run.target_fingerprint,
            run.sample_ids,
            uses_target_labels(run),
        )

    def aspects(self) -> dict[str, str]:
        """For people: what is shared, by name."""
        height, width = self.eval_size
        images = hashlib.sha256(f"{self.target_fingerprint}{self.sample_ids}".encode()).hexdigest()
        return {
            "evaluation size": f"{height}x{width}",
            "classes": f"{len(self.classes)} classes ({_digest_of_names(self.classes)})",
            "target images": f"{self.target} ({images[:KEY_LETTERS]})",
            "selected": "with target labels" if self.target_labels else "without target labels",
        }

    def __str__(self) -> str:
        return ", ".join(self.aspects().values())


def _digest_of_names(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:KEY_LETTERS]


def kept_apart(groups: Sequence[tuple[Group, int]]) -> list[str]:
    """A line for each group but the first: why it is not ranked with the ones before it."""
    lines = []
    for index, (group, count) in enumerate(groups):
        for other, others in groups[:index]:
            mine, theirs = group.aspects(), other.aspects()
            why = [
                f"{name} {mine[name]}, not {theirs[name]}"
                for name in mine
                if mine[name] != theirs[name]
            ]
            lines.append(f"{count_rows(count)} not ranked with {others} others: {'; '.join(why)}")
    return lines


def count_rows(count: int) -> str:
    """As words: 1 row, 2 rows."""
    return "1 row" if count == 1 else f"{count} rows"
