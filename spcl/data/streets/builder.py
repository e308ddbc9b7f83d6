"""Random numbers of one scene, and what they have put there so far."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from spcl.data.streets.domains import COLOURS, Colour, Look, Range
from spcl.data.streets.plan import PLAN, SIZE_SPREAD, SIZES, TINT
from spcl.data.streets.scene import Ground, Thing


@dataclass
class Builder:
    """Collects a scene; every draw comes from one generator, in one order."""

    rng: np.random.Generator
    look: Look
    ground: list[Ground] = field(default_factory=list)
    structures: list[Thing] = field(default_factory=list)
    actors: list[Thing] = field(default_factory=list)
    occupied: list[tuple[float, float, float, float]] = field(default_factory=list)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def between(self, limits: Range) -> float:
        return self.uniform(*limits)

    def happens(self, probability: float) -> bool:
        return self.rng.random() < probability

    def side(self) -> int:
        return 1 if self.happens(0.5) else -1

    def count(self, expected: float) -> int:
        return int(self.rng.poisson(expected))

    def choose(self, weights: Sequence[float]) -> int:
        """An index, in proportion to its weight."""
        mark = self.rng.random() * sum(weights)
        for index, weight in enumerate(weights):
            mark -= weight
            if mark < 0:
                return index
        return len(weights) - 1

    def colour(self, pool: str) -> Colour:
        """A colour of the pool, moved by the instance's own offset."""
        base = COLOURS[pool][int(self.rng.random() * len(COLOURS[pool]))]
        light, *tint = self.rng.normal(0.0, self.look.instance, 4)
        return tuple(c + light + TINT * t for c, t in zip(base, tint, strict=True))

    def depth(self, near: float, far: float) -> float:
        """Log-uniform: as many things near, where they are seen, as far."""
        return near * (far / near) ** self.rng.random()

    def thing(self, kind: str, x: float, z: float, pool: str, across: bool = False) -> Thing:
        scale = 1.0 + SIZE_SPREAD * float(np.clip(self.rng.standard_normal(), -2, 2))
        width, height, length = (scale * s for s in SIZES[kind])
        if across:
            width, length = length, width
        style = tuple(self.rng.random(4).tolist())
        return Thing(kind, x, z, width, height, length, self.colour(pool), style, across)

    def place(self, thing: Thing) -> bool:
        """Put a vehicle on the street unless another is in its way."""
        x0, x1 = thing.x - thing.width / 2, thing.x + thing.width / 2
        z0, z1 = thing.z - PLAN.headway / 2, thing.z + thing.length + PLAN.headway / 2
        for a0, a1, b0, b1 in self.occupied:
            if x0 < a1 and a0 < x1 and z0 < b1 and b0 < z1:
                return False
        self.occupied.append((x0, x1, z0, z1))
        self.actors.append(thing)
        return True
