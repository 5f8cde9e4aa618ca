"""Small `.tflite` files, and the script that makes them (`make_models.py`)."""

from pathlib import Path

FOLDER = Path(__file__).parent
