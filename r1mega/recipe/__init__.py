"""The stage graph: artifacts, fingerprints, resume, and running stages as process groups."""
