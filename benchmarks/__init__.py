"""Timing claims of this project, measured in pairs; nothing here is a test."""
