"""Compute: flavors, images, key pairs and instances."""
