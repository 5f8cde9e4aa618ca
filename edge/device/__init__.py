"""What the agent does on its device: threads, disk and memory."""
