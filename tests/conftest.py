"""What every test needs."""

import torch

# Two threads on two cores that run other things too wait for each other most of the time, and the
# number of threads is part of what "the same bits" means.
torch.set_num_threads(1)
