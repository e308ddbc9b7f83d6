"""How any street is built, in metres and probabilities, and how large things are.

Both domains share it; what differs between them is in `domains`.
"""

from dataclasses import dataclass

from spcl.data.streets.domains import Range

NEAR = 1.0  # m, where drawing begins
FAR = 2000.0  # m, where the ground ends, under the horizon
WIDE = 200.0  # m, where it ends to the left and the right


@dataclass(frozen=True)
class Plan:
    """How any street is built, in both domains: metres, and probabilities where it says so."""

    vanish: Range = (0.42, 0.58)  # image widths
    hood: Range = (0.025, 0.035)  # image heights
    shade_edge: Range = (-7.0, 7.0)
    # Across the street.
    lane: float = 3.3
    off_lane: float = 0.4  # the camera is at most so far from its lane's middle
    second_lane: float = 0.25  # probability, each way
    parking_lane: float = 2.2
    has_parking: float = 0.6  # probability, each side
    sidewalk: Range = (2.2, 5.0)
    kerb: float = 0.18
    verge: Range = (0.8, 1.6)
    verge_chance: Range = (0.1, 0.4)  # probability without grass, and what full grass adds
    junction_start: Range = (11.0, 40.0)
    junction_length: Range = (7.0, 12.0)
    corner: float = 0.5  # between a crossing street and the next structure
    # Paint on the road.
    dash: float = 3.0
    dash_every: float = 6.0
    dashes: int = 8
    dash_width: float = 0.14
    has_stripes: float = 0.6  # probability before a junction
    stripe: float = 0.55
    stripe_every: float = 1.1
    stripe_length: float = 2.6
    paint: float = 105.0  # grey levels above the road's
    # Along the street.
    end: float = 90.0
    stretch: Range = (7.0, 15.0)
    shortest: float = 2.0
    same_again: float = 0.45  # probability that the next stretch of a side is like the last
    setback: Range = (0.0, 4.0)
    house_depth: Range = (9.0, 14.0)
    house_gap: Range = (0.0, 2.5)
    wall_height: Range = (1.6, 3.4)
    fence_height: Range = (1.2, 2.1)
    hedge_height: Range = (1.0, 3.0)
    hedge_depth: float = 1.2
    wall_depth: float = 0.25
    tree_behind: Range = (3.0, 9.0)
    house_behind: Range = (9.0, 14.0)
    has_house_behind: float = 0.5  # probability
    # The end of the view.
    skyline: float = 75.0  # to the left and the right
    skyline_beyond: Range = (2.0, 20.0)
    skyline_width: Range = (9.0, 22.0)
    skyline_house: float = 0.55  # probability, else trees
    skyline_house_height: Range = (6.0, 15.0)
    skyline_tree_height: Range = (4.0, 10.0)
    # Who is there.
    tries: int = 4  # places tried for a vehicle before it is left out
    headway: float = 2.5  # least gap between two vehicles
    traffic: Range = (9.0, 48.0)  # z; what is further is a speck
    crossing: float = 0.3  # probability that a vehicle is on the crossing street, if there is one
    slot: float = 6.2  # a parking slot's length
    cycles: Range = (6.0, 26.0)  # z
    cycle_crossing: float = 0.4  # probability that a rider crosses
    cycle_from_kerb: Range = (0.5, 1.5)
    cycle_turned: Range = (0.35, 0.7)  # share of its length that is seen when it goes along
    cycle_row: float = 0.7  # between parked cycles
    furniture: Range = (7.0, 40.0)  # z
    furniture_from_kerb: Range = (0.3, 0.9)
    people: Range = (6.0, 35.0)  # z
    on_road: float = 0.2  # probability that somebody walks on the road
    in_pair: float = 0.25  # probability


PLAN = Plan()
# kind -> (width, height, length) in metres.
SIZES: dict[str, tuple[float, float, float]] = {
    "car": (1.8, 1.5, 4.3),
    "truck": (2.4, 3.3, 7.5),
    "bus": (2.5, 3.1, 11.0),
    "train": (2.6, 3.5, 26.0),
    "person": (0.55, 1.72, 0.4),
    "bicycle": (1.75, 1.05, 0.5),
    "motorcycle": (2.1, 1.15, 0.6),
    "cyclist": (1.75, 1.75, 0.5),
    "motorcyclist": (2.1, 1.65, 0.6),
    "bin": (0.6, 1.1, 0.6),
    "lamp": (0.16, 6.5, 0.2),
    "light": (0.14, 3.4, 0.2),
    "sign": (0.11, 2.7, 0.2),
    "tree": (3.6, 6.0, 3.0),
}
TINT = 0.4  # spread of an instance's hue, as a share of the spread of its lightness
SIZE_SPREAD = 0.06  # relative sigma of an instance's size
