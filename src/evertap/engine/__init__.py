"""The daemon's mind: events are folded, plans made and carried out. Knows the model and its ports only."""
