"""What `doctor` checks, one module per group; `registry` lists them all."""
