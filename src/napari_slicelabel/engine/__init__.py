"""What happens: events, configs, runs and the methods that fill a volume. No napari, no Qt."""
