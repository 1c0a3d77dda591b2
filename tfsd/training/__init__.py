"""The embedded model: the scenes it is trained on, its training, and the measure of its adherence."""
