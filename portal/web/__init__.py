"""The console: pages derived from the registry, and the few that differ."""
