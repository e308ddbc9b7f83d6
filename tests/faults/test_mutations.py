"""300 mutated data sets: each converted correctly, or refused or left out by name."""

from pathlib import Path

import mutations
import pytest

PARTS, EACH = 10, 30


@pytest.mark.parametrize("part", range(PARTS))
def test_mutated_files_are_converted_correctly_or_refused_by_name(
    part: int, tmp_path: Path
) -> None:
    outcomes = set()
    for number in range(part * EACH, (part + 1) * EACH):
        outcomes.add(mutations.verdict(number, tmp_path / str(number))[1])
    assert "refused" in outcomes  # else nothing was mutated


def test_the_slow_decoder_reads_what_was_written(tmp_path: Path) -> None:
    import numpy as np
    import trees

    pixels = np.random.default_rng(0).integers(0, 65536, (9, 7, 3)).astype(np.uint16)
    trees.save_rgb16(tmp_path / "a.png", pixels)
    assert (mutations.obvious_png((tmp_path / "a.png").read_bytes()) == pixels).all()
    grey = np.arange(63, dtype=np.uint8).reshape(9, 7) ** 2
    trees.save(tmp_path / "b.png", grey)  # with filters
    assert (mutations.obvious_png((tmp_path / "b.png").read_bytes())[..., 0] == grey).all()
