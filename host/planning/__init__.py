"""Which device runs what: costs, plans, and when to plan again. Pure; neither onnx nor a broker."""
