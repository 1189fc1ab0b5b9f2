"""Cameras to train from."""
