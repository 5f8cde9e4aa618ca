"""Samples to judge and train on, from where people have them."""
