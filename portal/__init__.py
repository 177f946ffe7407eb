"""Atonix Portal: a self-hosted cloud console."""
