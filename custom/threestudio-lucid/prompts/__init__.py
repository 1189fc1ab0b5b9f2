"""Prompts: text that depends on the view, by interpolation of embeddings and by Perp-Neg.

- view: from camera angles to weights (plain functions on tensors)
- processor: the class registered with threestudio
"""
