"""What exists: volumes, annotation, projects and their files. Knows neither torch nor napari."""
