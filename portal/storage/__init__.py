"""Storage: volumes and snapshots; buckets, what is in them, and how it is written, listed, read and removed."""
