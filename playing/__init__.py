"""The commands of `play.py`, a module a group of them: what policies do outside training."""
