"""What a run will need before it begins: memory, traffic, time, energy."""
