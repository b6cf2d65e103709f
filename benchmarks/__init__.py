"""Experiments on speed and memory, a script each; what they measured lies in results/."""
