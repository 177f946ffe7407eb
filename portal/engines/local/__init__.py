"""Engines of one Linux host: libvirt and QEMU, files on disk."""
