"""VMamba-TD3: a policy that flies by a few depth images in a row."""
