"""Measurements on real volumes: quality, speed. Nothing here is part of the package."""
