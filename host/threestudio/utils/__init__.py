"""Helpers shared by systems, models and extensions."""
