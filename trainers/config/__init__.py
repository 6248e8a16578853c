"""Configuration keys, merging, shipped yaml files, and use inside a fork."""
