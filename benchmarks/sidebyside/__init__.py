"""Measure csflow and its peers alternately, each in a process of its own.

Modules import torch and csflow inside the functions that use them: a peer's interpreter has no csflow, and what a
process imports decides its load time.
"""
