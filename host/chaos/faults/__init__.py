"""The faults, one kind a file: functions from a scene to nothing, each of which leaves the fleet to `restore`."""
