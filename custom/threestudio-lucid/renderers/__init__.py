"""Renderers registered with threestudio."""
