"""Small helpers that everybody may use: errors, files, images, processes, versions."""
