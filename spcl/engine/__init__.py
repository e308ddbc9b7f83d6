"""A recipe as stages, and the loop that trains them."""
