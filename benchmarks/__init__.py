"""Every figure that the README quotes, as a command: `python -m benchmarks.NAME --json`."""

import edge as edge  # its start keeps onnxruntime from reporting to its vendor
