"""Recipe to stages to run folder: what is done is kept, what was killed goes on, all is told."""
