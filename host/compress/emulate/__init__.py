"""Another processor, emulated: its answers, never its times."""
