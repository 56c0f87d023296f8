"""What is recorded of each family, one file each; `CASES` lists it."""
