"""Quadrotors: dynamics, worlds with obstacles, depth, and the tasks that are flown in them."""
