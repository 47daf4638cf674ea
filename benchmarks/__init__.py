"""What is measured, and how: `make bench`. README.md says what the figures mean, RESULTS.md holds the last ones."""
