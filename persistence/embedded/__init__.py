"""PostgreSQL as a part of the product: its binaries, its folder, and the child process that is watched over."""
