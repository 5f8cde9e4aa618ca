"""Cutting a model into layers and shards, and what they cost."""
