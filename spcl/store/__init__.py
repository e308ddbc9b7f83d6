"""What lies on disk, and its one writer: atomic files, leases, records, checkpoints."""
