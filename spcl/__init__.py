"""Adapt semantic segmentation to a new domain.  Plain PyTorch: this package never imports ray."""
