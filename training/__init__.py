"""What happens inside one run, for every trainer."""
