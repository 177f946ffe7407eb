"""Storage: volumes and snapshots."""
