"""What every test needs."""

from pathlib import Path

import pytest
import torch
from clusters import cluster as cluster  # fixtures
from clusters import commands as commands

# Two threads on two cores that run other things too wait for each other most of the time, and the
# number of threads is part of what "the same bits" means.
torch.set_num_threads(1)

#: A `streets` of a few images and a recipe of a few steps: settings for any command.
MINI = (
    "streets.source_images=24",
    "streets.target_images=16",
    "streets.val_images=6",
    "streets.size=[32,64]",
    "source.size=[32,64]",
    "target.size=[32,64]",
    "evaluation.size=[32,64]",
    "adversarial.steps=6",
    "spcl.steps=6",
    "self_training.steps=4",
    "source_only.steps=6",
    "train.threads=1",
    "train.loader_workers=0",
    "train.log_every=1",
    "train.checkpoint_every=2",
)
#: What a recipe needs besides to fit into MINI's images and steps.
MINI_OF = {"pipa": ("pipa.crop=[16,32]", "pipa.patch_start=0")}


@pytest.fixture(scope="session")
def mini_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of MINI: `streets`, rendered and converted once."""
    from spcl.configuration.config import load
    from spcl.engine.inputs import prepare_streets

    root = tmp_path_factory.mktemp("data")
    config = load("streets", "spcl", None, [*MINI, "model.target_statistics=estimated"])
    prepare_streets(config, root, lambda text: None)
    return root
