"""Cutting a model into layers and shards, their costs, and the planner."""
