"""Find the smallest and fastest model within a budget."""
