"""Faults on purpose: a fleet under load is hurt by a schedule, and its promise checked. Pure: `plan`, `oracle`."""
