"""The fleet: who is there, who coordinates, and how a deployment changes. Needs neither torch nor onnx."""
