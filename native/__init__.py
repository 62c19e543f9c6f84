"""Small C sources, and the one place that builds them on first use. Everything works without them, but slower."""
