"""Small helpers that any module may use: errors, files, images, processes, versions."""
