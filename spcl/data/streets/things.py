"""The table of how each kind of thing is drawn."""

from spcl.data.streets.buildings import draw_building, draw_fence, draw_hedge, draw_tree, draw_wall
from spcl.data.streets.furniture import draw_bin, draw_lamp, draw_light, draw_sign
from spcl.data.streets.people import (
    draw_bicycle,
    draw_cyclist,
    draw_motorcycle,
    draw_motorcyclist,
    draw_person,
)
from spcl.data.streets.vehicles import draw_bus, draw_car, draw_train, draw_truck

DRAW = {
    "building": draw_building,
    "wall": draw_wall,
    "fence": draw_fence,
    "hedge": draw_hedge,
    "tree": draw_tree,
    "car": draw_car,
    "truck": draw_truck,
    "bus": draw_bus,
    "train": draw_train,
    "person": draw_person,
    "bicycle": draw_bicycle,
    "motorcycle": draw_motorcycle,
    "cyclist": draw_cyclist,
    "motorcyclist": draw_motorcyclist,
    "lamp": draw_lamp,
    "light": draw_light,
    "sign": draw_sign,
    "bin": draw_bin,
}
