"""Where runs are started: on this machine (`local`)."""
