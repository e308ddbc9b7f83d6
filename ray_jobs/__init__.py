"""Commands that run on Ray: thin entry points over `spcl`, which knows nothing of Ray."""
