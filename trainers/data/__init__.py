"""What of a data set is on the disk, and what is missing."""
