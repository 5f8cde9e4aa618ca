"""The file and wire formats; numpy, msgspec and the standard library only."""
