"""A trained network, read only: predictions, passes, validators, analysis."""
