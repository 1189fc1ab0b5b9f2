"""The things of the toybox, a file for each family."""
