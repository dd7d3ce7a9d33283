"""Recipe `distill`."""
