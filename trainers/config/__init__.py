"""Configuration keys, merging, shipped yaml files, and life in a fork."""
