"""`streets`, the embedded benchmark: rendered street scenes with all 19 classes, in two looks.

    image, train_ids = render(world=0, domain="real", split="val", index=7)
    write_trees(Path("data/streets/raw"))      # a GTA5 tree (sim) and a Cityscapes tree (real)

A scene is a pure function of (world, domain, split, index).  World 0 is the benchmark; world 1,
with other scenes and other class colours, is for fixing hyper-parameters.
`domains` holds both looks; `layout` places things in metres, as `plan` says, and gives a `scene`;
`things` names the drawing of each kind (`buildings`, `vehicles`, `people`, `furniture`, on a
`canvas`); `render` makes image and label of it, `trees` writes files.
"""
