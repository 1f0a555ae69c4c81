"""Presto: a video diffusion transformer whose captions are bound to spans of time."""
