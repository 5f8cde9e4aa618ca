"""The device side of Shardwire: formats, agent and client."""
