"""Other projects, each in a virtual environment of its own, doing the same work."""
