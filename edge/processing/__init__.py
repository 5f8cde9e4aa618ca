"""What a bundle declares to be done before and after its model, done: a fixed set of steps, one module a family."""
