"""How good a model is: metrics, intervals, and whether a budget is kept."""
