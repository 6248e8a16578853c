"""What is there of a data set, and fetching it."""
