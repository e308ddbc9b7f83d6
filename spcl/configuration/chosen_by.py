"""Which search has chosen a run's settings, and by how many labelled target images.

Settings that labels of the target have chosen carry this wherever they go: from the search's
best.yaml through the configuration into config.yaml and manifest.json of every run, where boards
read it.  Whatever comes together is united, so that nothing a run has ever been told is lost; no
name of a folder and no setting of a command line can change it.  Needs no torch.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spcl.errors import ConfigError
from spcl.settings import build, dump_yaml, read_yaml, setting
from spcl.store import atomic

if TYPE_CHECKING:
    from spcl.store.run_folder import RunFolder

SECTION = "chosen_by"
LABELLED = ("few_label", "target_oracle")  # objectives that read labels of the target
LAST = "last"  # a manifest's selection where no search has chosen: the last checkpoint
BETWEEN = ", "  # names of searches


@dataclass(frozen=True, kw_only=True)
class ChosenBy:
    """Of settings that several searches have chosen: the objective that read most labels."""

    search: str = setting("", "a search's own files: its name", operational=True)
    objective: str = setting("", "a search's own files", operational=True)
    label_budget: int = setting(
        0, "a search's own files: labelled target images used", low=0, operational=True
    )

    @property
    def reads_target_labels(self) -> bool:
        return self.label_budget > 0 or self.objective.startswith(LABELLED)

    def __bool__(self) -> bool:
        return self != ChosenBy()

    def __or__(self, other: "ChosenBy") -> "ChosenBy":
        """Both: every search, and the objective and budget of the one that read most labels."""
        most = max(self, other, key=ChosenBy._labels)
        names = {n for one in (self, other) for n in one.search.split(BETWEEN)} - {""}
        return dataclasses.replace(most, search=BETWEEN.join(sorted(names)))

    def _labels(self) -> tuple[bool, int, str]:
        return self.reads_target_labels, self.label_budget, self.objective

    def __str__(self) -> str:
        """For people; "" where no search has chosen."""
        if not self:
            return ""
        budget = f"{self.label_budget} labelled target images"
        if not self.reads_target_labels:
            budget = "no target label"
        elif not self.label_budget:
            budget = "target labels"
        by = f"search {self.search}" if self.search else "a search"
        return f"settings chosen by {by}: {self.objective or 'objective unknown'}, {budget}"

    def in_manifest(self) -> dict[str, Any]:
        """What a run's manifest says of it."""
        return {
            "selection": self.objective or LAST,
            "label_budget": self.label_budget,
            "search": self.search,
        }


def of_manifest(manifest: Mapping[str, Any] | None) -> ChosenBy:
    """The inverse of `in_manifest`; manifests of older code name no search."""
    manifest = manifest or {}
    objective = manifest.get("selection", LAST)
    return ChosenBy(
        search=manifest.get("search", ""),
        objective="" if objective == LAST else objective,
        label_budget=manifest.get("label_budget", 0),
    )


def of_values(values: Mapping[str, Any]) -> ChosenBy:
    """What plain settings say of it.  ConfigError."""
    section = values.get(SECTION, {})
    if not isinstance(section, Mapping):
        raise ConfigError(f"{SECTION} is a section; expected key: value pairs, got {section!r}")
    return build(ChosenBy, section, SECTION + ".")


def stored(run: "RunFolder") -> ChosenBy:
    """What a run's folder says already."""
    path = run.folder / "config.yaml"
    values = read_yaml(path) if path.is_file() else {}
    return of_values(values) | of_manifest(run.manifest)


def carry(run: "RunFolder", chosen_by: ChosenBy) -> ChosenBy:
    """Unite what a run's folder says with `chosen_by`, in the files that are there; returns it."""
    united = stored(run) | chosen_by
    path = run.folder / "config.yaml"
    if path.is_file() and of_values(values := read_yaml(path)) != united:
        text = dump_yaml(values | {SECTION: dataclasses.asdict(united)})
        atomic.write_bytes(path, text.encode())
    manifest = run.manifest
    if manifest and of_manifest(manifest) != united:
        run.write("manifest.json", manifest | united.in_manifest())
    return united
