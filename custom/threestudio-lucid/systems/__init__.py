"""Training loops, and the pictures and numbers a run leaves."""
