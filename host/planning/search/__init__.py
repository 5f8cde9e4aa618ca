"""The search for the best plan: exact, and for large fleets bounded."""
