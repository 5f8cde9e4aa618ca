"""What a compression did and what it cost, for people and programs."""
