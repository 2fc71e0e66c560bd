"""What a run leaves on disk and how it survives: manifest, journals, fingerprints, progress and tracking."""
