"""Post-training quantisation: which matrix in which format, how it is rounded, what is lost."""
