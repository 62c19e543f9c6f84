"""A two-handed reaching task with 61 actuators."""
