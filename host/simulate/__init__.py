"""Whole fleets on a virtual clock: the code of agents, client and coordinator, over a network in memory."""
