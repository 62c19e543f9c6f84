"""Environments, and exact snapshots of their state."""
