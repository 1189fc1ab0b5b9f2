"""Cameras to train from.

orbit     placing and sampling cameras around the origin      (plain functions)
cameras   the datamodule registered with threestudio          (the only file that imports it)
"""
