"""Scores of a network on unlabelled target images, one file each; higher is better.

Every score is a function of sums over images of what one image contributes, so that a bootstrap
over images needs no second look at any.
Letters: B images of a batch, K classes, P pixels of an image, N pixels of all.
"""

LABEL_FREE = ("infomax", "nuclear", "consistency", "density")
#: What a search may maximise, see `spcl.inference.validation.objective`.
OBJECTIVES = ("label_free", *LABEL_FREE, "source_val", "few_label", "target_oracle")
