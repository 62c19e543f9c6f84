"""Drones among obstacles, seen through a depth camera."""
